"""A short seeded run of the frames fuzz: a guard process, a model server, and a bystander who must notice nothing.

The long run is `python -m tests.bench.fuzz_frames`.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.serve.endurance import Limits, endure
from tests.serve.sequences import SESSIONS, kind

pytestmark = pytest.mark.alone  # waits and processor time are measured

SEED = 0
SEQUENCES = 200
LOADS = {"herd"}  # what a busy machine makes of a load is no law
WAIT_MS = 1000.0  # a stall is seconds; a busy machine is not one
MOST_SECONDS = 60.0


def test_no_frames_disturb_another_client(bundle: Path, tmp_path: Path) -> None:
    numbers = [number for number in range(SEQUENCES) if kind(number, Random(f"{SEED}/{number}")) not in LOADS]
    limits = Limits(wait_ms=WAIT_MS, faults=10, minutes=MOST_SECONDS / 60)
    found = endure(bundle, tmp_path, seed=SEED, numbers=numbers, limits=limits, progress=lambda left, findings: None)
    assert found.faults == []
    assert found.sequences.total() == len(numbers)
    assert found.sequences.keys() == SESSIONS.keys() - LOADS
    assert found.calls > len(numbers)
    assert found.books["guard_calls_total{method=ServerLive, outcome=answered}"] > len(numbers)
