"""Double precision as the judge of items on which ONNX Runtime and torch disagree.

Rule 1: an item is explained only by what rounding does to it: a nudge of NUDGE_SHARE moves the exact output at least
half as far as ONNX Runtime is off (a kink: a ReLU at zero, a tie), or torch in single precision is off by at least a
quarter as much, on this item or on the median item. What is no number is never explained.
Rule 2: an output that torch in single precision itself misses by more than what is tolerated, on half of the items, is
blurred: no engine can keep to its tolerance, and how many items do says nothing. Rule 1 holds for each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.fusion import Floats
from guard.manifest import InputSpec
from guard.offline.model.unit_space import unit_of
from guard.offline.programs.outputs import Output, OutputScale

EXACT_BATCH_ITEMS = 4  # items that are computed in double precision at once
NUDGE_SHARE = (
    2.0**-20
)  # of the value range: a four-thousandth of an 8-bit step, and what float32 rounds off along the way
NUDGED_COPIES = 8
NUDGED_FACTOR = 2.0  # by which ONNX Runtime may be further off than a nudge moves the output
SINGLE_FACTOR = 4.0  # by which it may be further off than torch in single precision


class Checked(Protocol):
    """Module from wire inputs to outputs [item, ...] that has a written ONNX form."""

    spec: InputSpec

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the ONNX outputs."""
        ...

    @property
    def compared(self) -> tuple[Output, ...]:
        """Outputs as they are compared; scores one by one."""
        ...

    def split(self, values: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the values of the ONNX outputs as those of the compared ones."""
        ...

    def from_unit(self, unit: Tensor) -> tuple[Tensor, ...]:
        """Compute the ONNX outputs from unit-space items."""
        ...


@dataclass(frozen=True, eq=False)
class Judgement:
    """Errors of ONNX Runtime against double precision, and which of them are explained."""

    truth: list[NDArray[Any]]  # exact values of each compared output [item, ...]
    errors: Floats  # [item, output] in what is tolerated
    explained: NDArray[np.bool_]  # [item, output]
    blurred: NDArray[np.bool_]  # [output]


@dataclass(frozen=True, eq=False)
class Exact:
    """Copy of a program in double precision."""

    program: Checked

    @staticmethod
    def of(program: Checked) -> Exact:
        return Exact(cast(Checked, copy.deepcopy(cast(nn.Module, program)).double()))

    def outputs(self, unit: Tensor) -> list[NDArray[np.float64]]:
        """Return the ONNX outputs of unit-space items, [item, ...] each."""
        with torch.no_grad():
            parts = [self.program.from_unit(part) for part in unit.double().split(EXACT_BATCH_ITEMS)]
        return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]

    def moved(self, unit: Tensor, truth: list[NDArray[Any]], scale: OutputScale) -> Floats:
        """Measure how far the outputs move [item, output] when every value is nudged: the most of NUDGED_COPIES."""
        generator = torch.Generator().manual_seed(0)
        found = np.zeros(scale.allowed.shape)
        for _ in range(NUDGED_COPIES if len(unit) else 0):
            nudge = (2 * torch.rand(unit.shape, generator=generator, dtype=unit.dtype) - 1) * NUDGE_SHARE
            values = self.program.split(self.outputs(unit + nudge))
            found = np.maximum(found, scale.errors(values, truth))
        return found


def judge(
    program: Checked,
    wire: NDArray[Any],
    scale: OutputScale,
    founds: Sequence[list[NDArray[Any]]],
    single: list[NDArray[Any]],
) -> Judgement:
    """Judge compared outputs that ONNX Runtime found, one list a batch size, and torch's in single precision."""
    unit = unit_of(torch.from_numpy(wire), program.spec.box).double()
    exact = Exact.of(program)
    truth = program.split(exact.outputs(unit))
    errors = np.max([scale.errors(found, truth) for found in founds], axis=0)
    suspects = np.flatnonzero(~(errors <= 1).all(axis=1))
    moved = exact.moved(unit[suspects], [value[suspects] for value in truth], scale.take(suspects))
    own = scale.errors(single, truth)
    typical = np.median(own, axis=0)
    explained = np.ones(errors.shape, dtype=bool)
    rounded = SINGLE_FACTOR * np.maximum(own[suspects], typical)
    explained[suspects] = errors[suspects] <= np.maximum(1.0, np.maximum(NUDGED_FACTOR * moved, rounded))
    return Judgement(truth, errors, explained, typical > 1)
