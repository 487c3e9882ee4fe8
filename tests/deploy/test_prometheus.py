"""Rules and dashboard in a real Prometheus: promtool's tests of each rule, and the scripted day in its short form.

Large: the side environment `prometheus` is built by name alone (`python -m tests.side prometheus`).
"""

from __future__ import annotations

import json
import shutil
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


def tested(folder: Path, cases: tuple[Case, ...]) -> subprocess.CompletedProcess[str]:
    """The verdict of promtool on cases."""
    shutil.copy(RULES, folder / "rules.yaml")
    (folder / "cases.yaml").write_text(json.dumps(promtool_file("rules.yaml", cases)), encoding="utf-8")
    return promtool("test", "rules", "cases.yaml", folder=folder)


def test_the_rules_are_rules() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stderr
    assert "SUCCESS" in done.stdout


def test_each_alert_fires_in_its_cases_and_in_no_other(tmp_path: Path) -> None:
    done = tested(tmp_path, CASES)
    assert done.returncode == 0, done.stderr


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    fired = {name for case in CASES for names in case.fire.values() for name in names}
    assert fired == set(alert_names())


@pytest.mark.parametrize("alerts", [(), ("GuardUnchecked", "GuardShedding")], ids=["none wanted", "one too many"])
def test_a_wrong_case_is_found(alerts: tuple[str, ...], tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == "one unchecked request")
    done = tested(tmp_path, (Case(case.name, case.series, {31: alerts}),))
    assert done.returncode != 0
    assert "GuardUnchecked" in done.stderr


def test_the_day_in_its_short_form(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.day", "--quick", "--out", tmp_path]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert (tmp_path / "day.png").stat().st_size > 0
