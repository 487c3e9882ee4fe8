"""A short seeded run of the frames fuzz: a guard process, a model server, and a bystander who must notice nothing.

The long run is `python -m tests.bench.fuzz_frames`.
"""

from __future__ import annotations

from pathlib import Path

from tests.serve.endurance import Limits, endure
from tests.serve.sequences import SESSIONS

SEQUENCES = 200
WAIT_MS = 1000.0  # a stall is seconds; a busy machine is not one
MOST_SECONDS = 60.0


def test_no_frames_disturb_another_client(bundle: Path, tmp_path: Path) -> None:
    limits = Limits(wait_ms=WAIT_MS, faults=10, minutes=MOST_SECONDS / 60)
    found = endure(
        bundle, tmp_path, seed=0, numbers=range(SEQUENCES), limits=limits, progress=lambda left, findings: None
    )
    assert found.faults == []
    assert found.sequences.total() == SEQUENCES
    assert found.sequences.keys() == SESSIONS.keys()
    assert found.calls > SEQUENCES
    assert found.books["guard_calls_total{method=ServerLive, outcome=answered}"] > SEQUENCES
