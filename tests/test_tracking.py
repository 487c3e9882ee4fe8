"""What is logged of a bundle and its report, and what happens where no server takes it. No server is needed here."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from guard.bundle import Bundle, write_bundle
from guard.errors import ConfigError, DataError
from guard.tracking import bundle_run, check_tracking, figures_of, read_report, redacted, report_run
from tests.serve import tiny_bundle

RATE = {"count": 1, "items": 2, "low": 0.1, "high": 0.9, "value": 0.5}
REPORT = {
    "accuracy": {**RATE, "value": 0.9},
    "clean": [
        {"name": "clean", "rejected": RATE, "flagged": RATE, "alarms": {"0.001": None, "0.01": RATE, "0.05": RATE}},
        {"name": "noise, by size", "rejected": RATE, "flagged": RATE, "alarms": {}, "part": True},
    ],
    "attacks": [
        {
            "label": "pgd L∞ 1 to 2/16",
            "success": RATE,
            "rejected": RATE,
            "flagged": None,
            "served": {"auroc": {"value": 0.97}, "caught": {"0.05": {**RATE, "value": 0.75}}},
            "left_out": None,
        },
        {"label": "pgd L∞ 1 to 2/16", "served": {"auroc": {"value": None}}, "left_out": {"auroc": {"value": 0.6}}},
    ],
    "adaptive": [{"label": "adaptive L∞ 2/16", "fooled": RATE, "passed_reject": RATE, "detection": None}],
}
WORDS = re.compile(r"[A-Za-z0-9_. -]+(/[A-Za-z0-9_. -]+)*")  # which MLflow takes on every system


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a report in it."""
    folder = tmp_path_factory.mktemp("tracking")
    provenance = {"sources": {"data": {"items": 3, "digest": "sha256:ab"}}, "calibrated": {"parent": "cd"}}
    made = tiny_bundle.make(folder / "made", provenance=provenance)
    files = {name: (made.path / name).read_bytes() for name in made.files}
    return write_bundle(folder / "bundle", made.manifest, {**files, "report.json": json.dumps(REPORT).encode()})


def test_figures_have_the_reports_values_under_names_that_can_be_logged() -> None:
    found = figures_of(REPORT)
    assert found["accuracy"] == 0.9
    assert found["clean/clean/alarms at 0.05"] == 0.5
    assert found["attack/pgd Linf 1 to 2_16/auroc"] == 0.97
    assert found["attack/pgd Linf 1 to 2_16/caught at 0.05"] == 0.75
    assert found["attack/pgd Linf 1 to 2_16/left out auroc"] == 0.6
    assert found["adaptive/adaptive Linf 2_16/fooled"] == 0.5
    assert all(WORDS.fullmatch(name) for name in found)
    assert not [name for name in found if "by size" in name or "0.001" in name]


def test_rows_of_one_label_are_told_apart() -> None:
    twice = {"attacks": [{"label": "a", "success": {"value": v}} for v in (0.1, 0.2, 0.3)]}
    assert figures_of(twice) == {"attack/a/success": 0.1, "attack/a/success-2": 0.2, "attack/a/success-3": 0.3}


def test_a_run_has_all_that_the_bundle_vouches_for(bundle: Bundle) -> None:
    run = bundle_run(bundle)
    assert {file.name for file in run.files} == {*bundle.files, "manifest.json"}
    assert run.tags["guard.bundle.digest"] == bundle.digest
    assert run.tags["guard.parent"] == "cd"
    assert run.parameters["source.data.digest"] == "sha256:ab"
    assert run.parameters["model.name"] == tiny_bundle.MODEL_NAME
    assert run.figures == figures_of(REPORT)


def write_report(folder: Path, report: Any) -> None:
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (folder / "report.html").write_text("<p>", encoding="utf-8")


def test_a_report_is_a_run_of_its_own(bundle: Bundle, tmp_path: Path) -> None:
    write_report(tmp_path, {**REPORT, "guard": bundle.identity})
    run = report_run(bundle, tmp_path, {"quick": "True"})
    assert run.tags["guard.run"] == "evaluation"
    assert run.tags["guard.bundle.digest"] == bundle.digest
    assert run.parameters["evaluate.quick"] == "True"
    assert [file.name for file in run.files] == ["report.json", "report.html"]


@pytest.mark.parametrize("guard", ["0" * 64, None, 7])
def test_a_report_on_another_guard_is_not_logged_as_this_ones(bundle: Bundle, tmp_path: Path, guard: object) -> None:
    write_report(tmp_path, {**REPORT, "guard": guard})
    with pytest.raises(DataError, match=f"reports on .*, and .* is {bundle.identity[:16]}; wanted the report of"):
        report_run(bundle, tmp_path, {})


def test_a_page_that_is_missing_is_found_before_anything_is_sent(bundle: Bundle, tmp_path: Path) -> None:
    write_report(tmp_path, {**REPORT, "guard": bundle.identity})
    (tmp_path / "report.html").unlink()
    with pytest.raises(DataError, match=r"report\.html is not there; wanted both files"):
        report_run(bundle, tmp_path, {})


OTHER_FORMS = [
    *({"clean": [{}]}, {"clean": 7}, {"clean": [7]}, {"attacks": [{}]}, {"attacks": None}, {"adaptive": [[]]}),
    *({"accuracy": 7}, {"accuracy": {"value": "many"}}, {"clean": [{"name": "a", "alarms": [7]}]}),
    *({"attacks": [{"label": "a", "served": 7}]}, {"attacks": [{"label": 7, "success": RATE}]}),
]


@pytest.mark.parametrize("other", OTHER_FORMS, ids=str)
def test_a_report_of_another_form_is_refused(bundle: Bundle, tmp_path: Path, other: dict[str, Any]) -> None:
    write_report(tmp_path, {**other, "guard": bundle.identity})
    with pytest.raises(DataError, match=r"has another form .*; wanted the report\.json"):
        report_run(bundle, tmp_path, {})


@pytest.mark.parametrize("text", [None, "[]", "{"])
def test_a_report_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"wanted the report\.json"):
        read_report(tmp_path / "report.json")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host.example:5000/x", "http://***@host.example:5000/x"),
        ("http://host.example:5000", "http://host.example:5000"),
        ("sqlite:///runs.db", "sqlite:///runs.db"),
    ],
)
def test_passwords_are_not_shown(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


@pytest.fixture
def client_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the import alone: nothing of MLflow's is called."""
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))


@pytest.mark.parametrize("uri", ["", "host.example:5000", "ftp://host.example", "oci://host.example/x"])
@pytest.mark.usefixtures("client_is_there")
def test_what_is_no_server_is_refused_before_the_training(uri: str) -> None:
    with pytest.raises(ConfigError, match="wanted http"):
        check_tracking(uri, print)


@pytest.mark.usefixtures("client_is_there")
def test_a_server_that_does_not_answer_is_said_before_the_training() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and listens to nobody
        said: list[str] = []
        check_tracking(f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}", said.append)
    assert len(said) == 1
    assert "Connection refused" in said[0]
    assert "tried again at the end" in said[0]
    assert "secret" not in said[0]


# A stand-in for MLflow whose client fails where it sends a file, by what its artefact store raises.
FAKE = """
import os
print("telemetry off:", os.environ.get("MLFLOW_DISABLE_TELEMETRY"))
class Info: run_id, experiment_id = "7", "1"
class Found: info, experiment_id = Info, "1"
class MlflowClient:
    def __init__(self, tracking_uri): pass
    def get_experiment_by_name(self, name): return Found
    def create_run(self, *given, **named): return Found
    def log_batch(self, *given, **named): pass
    def log_artifact(self, *given): {failure}
    def set_terminated(self, run, status): {at_end}
"""
LOG = "from guard.delivery_commands import tracked; from guard.tracking import *"
FAILURES = {
    "import boto3_that_is_absent": r"No module named 'boto3_that_is_absent'\); .* by the package boto3_that_is_absent",
    "raise RuntimeError('Unable to locate credentials')": r"Unable to locate credentials\); .* your credentials",
}


def with_fake(folder: Path, code: str, failure: str = "pass", at_end: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run code with the stand-in, and no variable that says anything of telemetry."""
    (folder / "mlflow").mkdir()
    entities = "class Metric:\n  def __init__(self, *given): pass\nclass Param(Metric): pass\n"
    fake = FAKE.format(failure=failure, at_end=at_end)
    texts = {"__init__": fake, "entities": entities, "exceptions": "class MlflowException(Exception): pass\n"}
    for name, text in texts.items():
        (folder / "mlflow" / f"{name}.py").write_text(text, encoding="utf-8")
    left_out = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment["PYTHONPATH"] = os.pathsep.join((str(folder), str(Path(__file__).parent.parent)))
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_telemetry_is_off_before_the_client_is_imported(tmp_path: Path) -> None:
    done = with_fake(tmp_path, "from guard.tracking import check_tracking; check_tracking('runs', print)")
    assert done.stdout == "telemetry off: true\n", done.stderr


def test_telemetry_is_off_where_nothing_was_checked_before(bundle: Bundle, tmp_path: Path) -> None:
    done = with_fake(tmp_path, f"{LOG}; track('runs', bundle_run(Bundle.open(Path({str(bundle.path)!r}))))")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "telemetry off: true\n"


@pytest.mark.parametrize("at_end", ["pass", "raise OSError('away, too')"])
@pytest.mark.parametrize("failure", FAILURES)
def test_an_artefact_store_that_fails_is_one_line_after_a_training(
    bundle: Bundle, tmp_path: Path, failure: str, at_end: str
) -> None:
    run = f"lambda: bundle_run(Bundle.open(Path({str(bundle.path)!r})))"
    done = with_fake(tmp_path, f"{LOG}; tracked('runs', {run}, 'guard track b')", failure, at_end)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search(f"guard: not logged: runs took no run \\({FAILURES[failure]}.*; try again", done.stderr), (
        done.stderr
    )
