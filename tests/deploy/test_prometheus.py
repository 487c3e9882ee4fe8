"""Rules and dashboard in a real Prometheus: promtool's tests of each rule, and the scripted day in its short form.

Large: the side environment `prometheus` is built by name alone (`python -m tests.side prometheus`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.monitoring import RULES, alert_names
from tests.deploy.prometheus_process import promtool
from tests.deploy.rule_cases import CASES, Case, promtool_file
from tests.side import StaleError, shelf

pytestmark = pytest.mark.large


@pytest.fixture(autouse=True, scope="module")
def prometheus_is_here(no_prometheus: str) -> None:
    try:
        shelf("prometheus")
    except StaleError:
        pytest.skip(no_prometheus)


def verdict(folder: Path, cases: tuple[Case, ...], old: str = "", new: str = "") -> subprocess.CompletedProcess[str]:
    """The verdict of promtool on cases, of the rules with one text in them replaced."""
    (folder / "rules.yaml").write_text(RULES.read_text("utf-8").replace(old, new), encoding="utf-8")
    (folder / "cases.yaml").write_text(json.dumps(promtool_file("rules.yaml", cases)), encoding="utf-8")
    return promtool("test", "rules", "cases.yaml", folder=folder)


def test_the_rules_are_rules() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stderr
    assert "SUCCESS" in done.stdout


def test_each_alert_fires_in_its_cases_and_in_no_other(tmp_path: Path) -> None:
    done = verdict(tmp_path, CASES)
    assert done.returncode == 0, done.stderr


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    fired = {name for case in CASES for names in case.fire.values() for name in names}
    assert fired == set(alert_names())


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        (">= bool 20", ">= bool 5", "ten crafted requests"),
        ('5 * model:guard_promised_rate:max{action="reject"} / (1 + 4', "0.02 + 0 * (1 + 4", "four times the promised"),
        ("unless guard_drift_alarm offset 15m == 1", "", "an alarm that was up before the wave"),
        (
            "max_over_time(model:guard_drift_alarm_of_attack:bool[10m])",
            "model:guard_drift_alarm_of_attack:bool",
            "fail",
        ),
        ("[5m]))\n          + sum by", "[5m]))\n          + 0 * sum by", "a wave in the shadow queue"),
        ("+ 5 * model:guard_beyond_items:deviation1h", "* 1.2", "nearly twice as many, on few calibration items"),
        ("kube_pod_init_container_resource_limits", "kube_nothing", "memory, kube_pod_init_container"),
    ],
)
def test_a_rule_that_is_wrong_is_found(old: str, new: str, name: str, tmp_path: Path) -> None:
    assert RULES.read_text("utf-8").count(old) == 1
    chosen = tuple(case for case in CASES if name in case.name)
    assert verdict(tmp_path, chosen).returncode == 0
    assert verdict(tmp_path, chosen, old, new).returncode != 0


@pytest.mark.parametrize("alerts", [(), ("GuardUnchecked", "GuardShedding")], ids=["none wanted", "one too many"])
def test_a_wrong_case_is_found(alerts: tuple[str, ...], tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == "one unchecked request")
    done = verdict(tmp_path, (Case(case.name, case.series, {31: alerts}),))
    assert done.returncode != 0
    assert "GuardUnchecked" in done.stderr


def test_the_day_in_its_short_form(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.day", "--quick", "--out", tmp_path]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert (tmp_path / "day.png").stat().st_size > 0
