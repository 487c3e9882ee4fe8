"""Verdicts of torch's programs and of ONNX Runtime's on the same items: the last word on whether the two agree.

Rule 1: at most MAX_FLIPPED_SHARE of the items, or a single one, get another verdict at a promised rate. An item within
TIED_POINTS ranks of itself is a tie, and flips nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.cascade import Cascade, Run
from guard.errors import ParityError
from guard.offline.programs.opened_guard import Rates
from guard.offline.programs.parity import in_parts
from guard.offline.programs.program import Program

MAX_FLIPPED_SHARE = 1e-3
FIRST_ITEMS, MOST_ITEMS = 100, 1000  # read at first; read where one of those got another verdict
TIED_POINTS = 3  # ranks among the calibration items


@dataclass(frozen=True)
class Verdicts:
    """Number of items read, and those that got another verdict."""

    items: int
    flipped: tuple[int, ...]

    def __str__(self) -> str:
        return f"ONNX Runtime and torch: {len(self.flipped)} of {self.items} clean items get another verdict"


def compare_verdicts(cascade: Cascade, programs: Mapping[str, Program], wire: NDArray[Any], rates: Rates) -> Verdicts:
    """Read real wire inputs [item, ...] with both, and compare the verdicts. Raises ParityError for too many."""
    runs = [in_torch(programs[spec.name]) for spec in cascade.programs]
    found = flipped(cascade, runs, wire[:FIRST_ITEMS], rates)
    if len(found.flipped) and len(wire) > FIRST_ITEMS:
        found = flipped(cascade, runs, wire[:MOST_ITEMS], rates)
    if len(found.flipped) > max(1, MAX_FLIPPED_SHARE * found.items):
        item = found.flipped[0]
        one = wire[item : item + 1]
        values = [cascade.read(one).p_value[0], cascade.follow(one, runs, complete=True).p_value[0]]
        raise ParityError(
            f"{found}, e.g. item {item}: p-value {values[0]:.4g} in ONNX Runtime, {values[1]:.4g} in torch, where "
            f"{rates.reject:g} is rejected and {rates.flag:g} flagged; at most {MAX_FLIPPED_SHARE:g} of them, or one, "
            "may. What to do: leave out the detectors that rest on gradients (--preset fast has none), or calibrate on "
            "more clean items"
        )
    return found


def flipped(cascade: Cascade, runs: Sequence[Run], wire: NDArray[Any], rates: Rates) -> Verdicts:
    """Return the items that ONNX Runtime and these runs judge otherwise, ties left out."""
    size = FIRST_ITEMS
    parts = [wire[i : i + size] for i in range(0, len(wire), size)]
    served = np.concatenate([cascade.read(part, complete=True).p_value for part in parts])
    other = np.concatenate([cascade.follow(part, runs, complete=True).p_value for part in parts])
    apart = np.abs(served - other) > TIED_POINTS / (cascade.calibration.items + 1)
    differ = [(served <= rate) != (other <= rate) for rate in (rates.reject, rates.flag)]
    return Verdicts(len(wire), tuple(int(item) for item in np.flatnonzero(apart & np.any(differ, axis=0))))


def in_torch(program: Program) -> Run:
    """Return a program as a cascade runs it, in torch."""
    return lambda images: in_parts(program, images)[:2]
