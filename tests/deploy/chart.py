"""The chart and its sets of values, as Helm's own library renders and lints them."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.side import ROOT, ready

CHART = ROOT / "deploy" / "helm"
HERE = Path(__file__).resolve().parent
SETS = {file.name.removesuffix("-values.yaml"): file for file in sorted((CHART / "ci").glob("*-values.yaml"))}
LOWEST = re.compile(r"# Kubernetes 1\.(\d+) or later")  # on the first line of each set


def lowest(name: str) -> int:
    """The minor version of Kubernetes from which on a set of values says that it works."""
    found = LOWEST.match(SETS[name].read_text("utf-8"))
    assert found, f"{SETS[name]} does not begin with its lowest version of Kubernetes"
    return int(found[1])


def asked_of(environment: str, program: str, given: Any) -> Any:
    """The answer of a program beside this file, run in a side environment: JSON in, JSON out."""
    command = [ready(environment) / "python", HERE / program]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask_helm(asked: dict[str, dict[str, str]]) -> dict[str, Any]:
    """What Helm answers, by name, to `values` alone (it renders) or with `lint`."""
    found: dict[str, Any] = asked_of("helm", "helm_program.py", {"chart": str(CHART), "asked": asked})
    return found


@functools.cache
def all_rendered() -> dict[str, Any]:
    """Every set of values, rendered once a process: `objects` and `notes`, or `error`."""
    return ask_helm({name: {"values": file.read_text("utf-8")} for name, file in SETS.items()})


def objects_of(name: str) -> list[Any]:
    """The objects that a set of values renders."""
    found = all_rendered()[name]
    assert "error" not in found, found["error"]
    objects: list[Any] = found["objects"]
    return objects
