"""A short seeded run of the frames fuzz: a guard process, a model server, and a bystander who must notice nothing.

The long run is `python -m tests.bench.fuzz_frames`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from tests.serve.endurance import Findings, Limits, endure
from tests.serve.sequences import SESSIONS, kind

pytestmark = pytest.mark.alone  # waits and processor time are measured

SEED = 0
SEQUENCES = 200
LOADS = {"herd"}  # what a busy machine makes of a load is no law
WAIT_MS = 1000.0  # a stall is seconds; a busy machine is not one
MOST_SECONDS, AGAIN = 60.0, 2


def sent(bundle: Path, folder: Path, numbers: Sequence[int]) -> Findings:
    limits = Limits(wait_ms=WAIT_MS, faults=10, minutes=MOST_SECONDS / 60)
    return endure(bundle, folder, seed=SEED, numbers=numbers, limits=limits, progress=lambda left, findings: None)


def test_no_frames_disturb_another_client(bundle: Path, tmp_path: Path) -> None:
    numbers = [number for number in range(SEQUENCES) if kind(number, Random(f"{SEED}/{number}")) not in LOADS]
    found = sent(bundle, tmp_path, numbers)
    faults = found.faults
    for _ in range(AGAIN):  # a sequence that disturbs does so each time, a busy machine now and then
        numbered = sorted({fault.number for fault in faults if fault.number is not None})
        if not numbered or any(fault.number is None for fault in faults):
            break
        faults = sent(bundle, tmp_path, numbered).faults
    assert faults == []
    assert found.sequences.total() == len(numbers)
    assert found.sequences.keys() == SESSIONS.keys() - LOADS
    assert found.calls > len(numbers)
    assert found.books["guard_calls_total{method=ServerLive, outcome=answered}"] > len(numbers)
