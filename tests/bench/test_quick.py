"""The sidecar's benchmarks in their short form: what takes longer, and the figures, are on the benchmark page."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = {
    "ablation": (),
    "answered_queries": (),
    "cluster": (),
    "costs": (),
    "detectors": (),
    "drift": (),
    "fitted_items": (),
    "forecast": (),
    "forest": ("--forest",),
    "hop": (),
    "kinds": ("series",),
    "off_recipe": (),
    "operators": (),
    "queries": (),
    "recalibration": (),
    "repair": (),
    "second": (),
    "tabular": (),
    "zoo": ("shufflenet", "--no-training"),
}
APART = {  # of which a figure is this process's own, or which end what they started by signals
    "audit": (),
    "faults": (),
    "fuzz_frames": ("--limit-ms", "2000"),  # a bystander's wait on a busy machine: a stall is longer
    "fuzz_messages": (),
    "hour": (),
    "memory": (),
    "overload": (),
    "soak": (),
}
MEASURES_WAITS = {"faults", "fuzz_frames", "overload"}


@pytest.mark.filterwarnings("ignore")  # as in a process of its own, where nobody turns them into errors
@pytest.mark.parametrize("name", QUICK)
def test_it_runs_and_finds_nothing_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m` would run it, but in this process, where what others have exported is found again."""
    monkeypatch.setattr(sys, "argv", [f"tests.bench.{name}", "--quick", *QUICK[name]])
    code: object = None
    try:
        runpy.run_module(f"tests.bench.{name}", run_name="__main__")
    except SystemExit as end:
        code = end.code
    assert not code


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.alone if name in MEASURES_WAITS else ()) for name in APART]
)
def test_it_runs_in_a_process_of_its_own(name: str, root: Path) -> None:
    command = [sys.executable, "-m", f"tests.bench.{name}", "--quick", *APART[name]]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
