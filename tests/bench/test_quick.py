"""The sidecar's benchmarks in their short form: what takes longer, and the figures, are on the benchmark page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

QUICK = {
    "ablation": (),
    "costs": (),
    "detectors": (),
    "fitted_items": (),
    "forest": ("--forest",),
    "fuzz_frames": ("--limit-ms", "500"),  # a bystander's wait where tests run beside each other
    "fuzz_messages": (),
    "kinds": ("series",),
    "memory": (),
    "off_recipe": (),
    "overload": (),
    "repair": (),
    "second": (),
    "tabular": (),
    "zoo": ("gru", "shufflenet", "--no-training"),
}


MEASURES_WAITS = {"fuzz_frames", "overload"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.alone if name in MEASURES_WAITS else ()) for name in QUICK]
)
def test_it_runs_and_finds_nothing_wrong(name: str, root: Path) -> None:
    command = [sys.executable, "-m", f"tests.bench.{name}", "--quick", *QUICK[name]]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
