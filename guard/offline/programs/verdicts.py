"""Verdicts of torch's programs and of ONNX Runtime's on the same items: the last word on whether the two agree.

Rule 1: at most MAX_FLIPPED_SHARE of the items, or a single one, get another verdict at a promised rate. An item within
TIED_POINTS ranks of itself is a tie, and flips nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.cascade import Cascade, Run
from guard.errors import ParityError
from guard.fusion import Floats
from guard.offline.evidence.batches import batch_items
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


def compare_verdicts(
    cascade: Cascade, programs: Mapping[str, Program], unit: NDArray[np.float32], rates: Rates
) -> Verdicts:
    """Read clean unit-space items [item, ...] with both, and compare the verdicts. Raises ParityError for too many."""
    runs = [in_torch(programs[spec.name]) for spec in cascade.programs]
    found = flipped(cascade, runs, unit[:FIRST_ITEMS], rates)
    if len(found.flipped) and len(unit) > FIRST_ITEMS:
        found = flipped(cascade, runs, unit[:MOST_ITEMS], rates)
    if len(found.flipped) > max(1, MAX_FLIPPED_SHARE * found.items):
        item = found.flipped[0]
        served, other = p_values(cascade, runs, unit[item : item + 1])
        raise ParityError(
            f"{found}, e.g. item {item}: p-value {served[0]:.4g} in ONNX Runtime, {other[0]:.4g} in torch, where "
            f"{rates.reject:g} is rejected and {rates.flag:g} flagged; at most {MAX_FLIPPED_SHARE:g} of them, or one, "
            "may. What to do: leave out the detectors that rest on gradients (--preset fast has none), or calibrate on "
            "more clean items"
        )
    return found


def flipped(cascade: Cascade, runs: Sequence[Run], unit: NDArray[np.float32], rates: Rates) -> Verdicts:
    """Return the items that ONNX Runtime and these runs judge otherwise, ties left out."""
    served, other = p_values(cascade, runs, unit)
    apart = np.abs(served - other) > TIED_POINTS / (cascade.calibration.items + 1)
    differ = [(served <= rate) != (other <= rate) for rate in (rates.reject, rates.flag)]
    return Verdicts(len(unit), tuple(int(item) for item in np.flatnonzero(apart & np.any(differ, axis=0))))


def p_values(cascade: Cascade, runs: Sequence[Run], unit: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Return the p-values [item] that ONNX Runtime and these runs give, in batches that fit into a small memory."""
    size = batch_items(unit.shape[1:])
    served, other = [], []
    for start in range(0, len(unit), size):
        wire = cascade.spec.box.from_unit(unit[start : start + size])
        served.append(cascade.read(wire).p_value)
        other.append(cascade.follow(wire, runs, complete=False).p_value)
    return np.concatenate(served), np.concatenate(other)


def in_torch(program: Program) -> Run:
    """Return a program as a cascade runs it, in torch."""
    return lambda images: in_parts(program, images)[:2]
