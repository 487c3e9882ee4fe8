"""checkov finds nothing in the manifests and the Dockerfile but what deploy/checkov.yaml explains."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import SETS, objects_of
from tests.deploy.manifests import kustomize
from tests.deploy.test_overlays import NAMES, folder
from tests.side import ROOT, StaleError, ready

pytestmark = [pytest.mark.slow, pytest.mark.large]
EXCEPTIONS = ROOT / "deploy" / "checkov.yaml"
TO_JSON = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"


@pytest.fixture(scope="module")
def checkov(no_checkov: str) -> Path:
    try:
        return ready("checkov") / "checkov"
    except StaleError:
        pytest.skip(no_checkov)


@pytest.fixture(scope="module")
def found(checkov: Path, side: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What is found by which check, nothing left out: the resources, each with its file."""
    files = tmp_path_factory.mktemp("rendered")
    for name in NAMES:
        (files / f"kustomize-{name}.yaml").write_text(kustomize(folder(name), side("kubectl")), "utf-8")
    for name in SETS:
        (files / f"helm-{name}.yaml").write_text("\n---\n".join(map(json.dumps, objects_of(name))), "utf-8")
    (files / "Dockerfile").write_text((ROOT / "Dockerfile").read_text("utf-8"), "utf-8")
    command = [checkov, "--directory", files, "--framework", "kubernetes", "dockerfile"]
    command += ["--skip-download", "--quiet", "--compact", "--output", "json"]
    done = subprocess.run(command, capture_output=True, check=False, text=True, cwd=files)
    reports: Any = json.loads(done.stdout)
    checks: dict[str, set[str]] = {}
    for report in reports if isinstance(reports, list) else [reports]:
        assert report["summary"]["parsing_errors"] == 0
        assert report["summary"]["passed"] > 0
        for one in report["results"]["failed_checks"]:
            checks.setdefault(one["check_id"], set()).add(f"{one['file_path']} {one['resource']}: {one['check_name']}")
    return checks


def test_nothing_is_found_that_is_not_explained(found: dict[str, set[str]], side: Callable[[str], Path]) -> None:
    command = [side("kubectl") / "python", "-c", TO_JSON]
    done = subprocess.run(command, input=EXCEPTIONS.read_text("utf-8"), capture_output=True, check=True, text=True)
    explained = set(json.loads(done.stdout)["skip-check"])
    assert {check: places for check, places in found.items() if check not in explained} == {}
    assert explained - set(found) == set()  # an exception that is needed no more goes


def test_every_exception_has_a_reason() -> None:
    lines = [line.strip() for line in EXCEPTIONS.read_text("utf-8").splitlines()]
    for number, line in enumerate(lines):
        if line.startswith("- CKV"):
            assert lines[number - 1].startswith(("#", "- CKV")), line
