"""Parity check: a program's ONNX Runtime outputs agree with torch's on real inputs, or no bundle is written.

Rule 1: forward outputs agree within 1e-4 (relative L2) for every item, gradients within 1e-3 for 99 % of them. Scores
that rest on gradients or rounded rows may jump where those do: within 1 % of their spread, for 99 % of the items.
Rule 2: in a deep network more than 1 % of the items lie so close to a kink (a ReLU at zero, a tie) that two float32
computations fall on different sides. Then double precision judges: an item is forgiven only if a nudge of NUDGE_SHARE
moves the exact output at least half as far as ONNX Runtime is off, and half of all items must agree with it, forgiven
or not.

How it works. Torch and ONNX Runtime compute the same items, ONNX Runtime in batches of 1 and of 7. Each output is
compared item by item; for gradients and scores the worst 1 % of the items is left out, and the largest error of the
rest must keep the tolerance. If it does not, the errors are measured again from a double-precision copy of the program.

Example: of 100 items 97 have a gradient error of 1e-5, and three of 0.02, 0.03 and 0.05. One item is left out, so the
error is 0.03, above 1e-3, and double precision judges. Say that it finds the same errors, and that nudges of at most
2**-20 move the exact gradients of the three by 0.02, 0.02 and 0.0001. The first two lie on kinks (0.02 and 0.03 are at
most 2 * 0.02) and count as 0; the third does not (0.05 is more than 2 * 0.0001), but is the one item left out. The
error is now 1e-5, as is the median of all items, and the program passes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.errors import ParityError
from guard.offline.model.unit_space import unit_of
from guard.offline.programs.program import Program
from guard.session import Session

FORWARD_TOLERANCE = 1e-4  # relative L2 an item
GRADIENT_TOLERANCE = 1e-3
AGREEING_SHARE = 0.99  # of the items; input gradients jump where a ReLU or a maximum ties
SCORE_TOLERANCE = 1e-2  # of a score's standard deviation, for the same share of the items
BATCH_ITEMS = (1, 7)
TORCH_BATCH_ITEMS = (
    16  # items that torch computes at once: a gradient keeps every activation, 60 MB an item at 224 x 224
)
NUDGE_SHARE = (
    2.0**-20
)  # of the value range: a four-thousandth of an 8-bit step, and what float32 rounds off along the way
NUDGED_COPIES = 8


@dataclass(frozen=True)
class Parity:
    """The largest differences between ONNX Runtime and torch on real inputs, the worst of the batch sizes tried."""

    forward: float  # largest relative L2 an item, logits and scores of the plain pass
    gradient: float  # the 99th percentile over items of the gradient's relative L2; 0 where none is formed
    outliers: tuple[int, ...]  # items beyond the gradient's tolerance
    score: float  # the 99th percentile over items of the largest difference of a score, in its standard deviations
    kinks: tuple[int, ...] = ()  # items beyond a tolerance that were shown to sit on kinks, and are forgiven above


@dataclass(frozen=True)
class Errors:
    """The errors of each item, in the gradient and in the scores."""

    gradient: NDArray[np.float64]  # [item] relative L2; 0 where no gradient is formed
    score: NDArray[np.float64]  # [item] largest difference of a score, in its standard deviations

    @staticmethod
    def between(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]], spread: NDArray[Any]) -> Errors:
        """Compare a program's outputs, [item, ...] each, with others; `spread` is each score's standard deviation."""
        score = np.abs((found[1].astype(np.float64) - expected[1]) / spread).max(axis=1)
        gradient = relative(found[2], expected[2]) if len(found) > 2 else np.zeros(len(score))
        return Errors(gradient, score)

    def worse(self, other: Errors) -> Errors:
        return Errors(np.maximum(self.gradient, other.gradient), np.maximum(self.score, other.score))

    def beyond(self) -> NDArray[np.bool_]:
        """Return which items are outside a tolerance [item]; NaN is outside."""
        return ~((self.gradient <= GRADIENT_TOLERANCE) & (self.score <= SCORE_TOLERANCE))


def check_parity(name: str, program: Program, session: Session, wire: NDArray[Any]) -> Parity:
    """Compare one written program with torch on real inputs, in batches of two sizes.

    Raises:
        ParityError: the program breaks the rules; the message names program, output and the first items.
    """
    expected = in_parts(program, wire)
    founds = [served(session, program, wire, size) for size in BATCH_ITEMS]
    worst = reduce(worse, (compare(found, expected, plain=program.plain) for found in founds))
    if not worst.forward <= FORWARD_TOLERANCE:  # NaN is not
        raise ParityError(
            f"program {name!r}: ONNX Runtime and torch differ by {worst.forward:.1e} (relative); "
            f"at most {FORWARD_TOLERANCE:g}"
        )
    if not (worst.gradient <= GRADIENT_TOLERANCE and worst.score <= SCORE_TOLERANCE):
        worst = judged(program, founds, wire, worst, np.maximum(expected[1].std(axis=0), 1e-6))
    if not worst.gradient <= GRADIENT_TOLERANCE:
        raise ParityError(
            f"program {name!r}: the input gradients of {len(worst.outliers)} of {len(wire)} items differ from torch's "
            f"by more than {GRADIENT_TOLERANCE:g}, e.g. items {list(worst.outliers[:5])}; "
            f"at most {1 - AGREEING_SHARE:.0%} may, and {len(worst.kinks)} items beyond that are explained by kinks"
        )
    if not worst.score <= SCORE_TOLERANCE:
        raise ParityError(
            f"program {name!r}: ONNX Runtime's and torch's scores differ by {worst.score:.1e} standard deviations; "
            f"at most {SCORE_TOLERANCE:g}"
        )
    return worst


def judged(
    program: Program, founds: Sequence[Sequence[NDArray[Any]]], wire: NDArray[Any], plain: Parity, spread: NDArray[Any]
) -> Parity:
    """Compare again with double precision as the judge, and forgive the items on kinks (rule 2)."""
    unit = unit_of(torch.from_numpy(wire), program.spec.box).double()
    exact = Exact.of(program)
    truth = exact.outputs(unit)
    errors = reduce(Errors.worse, (Errors.between(found, truth, spread) for found in founds))
    suspects = np.flatnonzero(errors.beyond())
    moved = exact.moved(unit[suspects], [output[suspects] for output in truth], spread)
    on_kink = (errors.gradient[suspects] <= np.maximum(GRADIENT_TOLERANCE, 2 * moved.gradient)) & (
        errors.score[suspects] <= np.maximum(SCORE_TOLERANCE, 2 * moved.score)
    )
    kinks = suspects[on_kink]
    left = Errors(errors.gradient.copy(), errors.score.copy())
    left.gradient[kinks] = left.score[kinks] = 0.0
    return replace(
        plain,
        gradient=float(np.maximum(most(left.gradient), np.median(errors.gradient))),
        score=float(np.maximum(most(left.score), np.median(errors.score))),
        kinks=tuple(int(item) for item in kinks),
    )


@dataclass(frozen=True, eq=False)
class Exact:
    """A copy of a program in double precision."""

    program: Program

    @staticmethod
    def of(program: Program) -> Exact:
        return Exact(copy.deepcopy(program).double())

    def outputs(self, unit: Tensor) -> list[NDArray[np.float64]]:
        """Return logits, scores and any gradient of unit-space items, [item, ...] each."""
        parts = [self.part(part) for part in unit.split(TORCH_BATCH_ITEMS // 4)]
        return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]

    def part(self, unit: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self.program.read(self.program.evidence(unit))

    def moved(self, unit: Tensor, truth: Sequence[NDArray[np.float64]], spread: NDArray[Any]) -> Errors:
        """Measure how far the outputs move when every value is nudged: the most of NUDGED_COPIES draws."""
        generator = torch.Generator().manual_seed(0)
        found = Errors(np.zeros(len(unit)), np.zeros(len(unit)))
        for _ in range(NUDGED_COPIES if len(unit) else 0):
            nudge = (2 * torch.rand(unit.shape, generator=generator, dtype=unit.dtype) - 1) * NUDGE_SHARE
            found = found.worse(Errors.between(self.outputs(unit + nudge), truth, spread))
        return found


def served(session: Session, program: Program, wire: NDArray[Any], size: int) -> list[NDArray[np.float32]]:
    """Return ONNX Runtime's outputs in batches of a size, [item, ...] each."""
    parts = [session.run(program.outputs, wire[i : i + size]) for i in range(0, len(wire), size)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def in_parts(program: Program, wire: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return the program's outputs in torch, [item, ...] each."""
    with torch.no_grad():
        parts = [
            program(torch.from_numpy(wire[i : i + TORCH_BATCH_ITEMS])) for i in range(0, len(wire), TORCH_BATCH_ITEMS)
        ]
    return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]


def compare(
    found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]], *, plain: Sequence[int]
) -> Parity:
    """Compare outputs, [item, ...] each; `plain` are the columns of the scores that rest on the plain pass."""
    spread = np.maximum(expected[1].std(axis=0), 1e-6)
    columns = list(plain)
    strict = [relative(found[0], expected[0])]
    if columns:
        strict.append(relative((found[1] / spread)[:, columns], (expected[1] / spread)[:, columns]))
    errors = Errors.between(found, expected, spread)
    return Parity(
        forward=float(np.max(strict)),
        gradient=most(errors.gradient),
        outliers=tuple(int(i) for i in np.flatnonzero(~(errors.gradient <= GRADIENT_TOLERANCE))),
        score=most(errors.score),
    )


def most(errors: NDArray[np.float64]) -> float:
    """Return the largest error [item] when the share that may be beyond it is left out; NaN counts as the largest."""
    allowed = int((1 - AGREEING_SHARE) * len(errors) + 1e-9)
    return float(np.sort(errors)[len(errors) - 1 - allowed])


def relative(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Return the relative L2 difference of each item [item]."""
    a, b = found.reshape(len(found), -1).astype(np.float64), expected.reshape(len(expected), -1).astype(np.float64)
    return np.asarray(np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12))


def worse(a: Parity, b: Parity) -> Parity:
    """Return the larger of each error; NaN is larger than all."""
    return Parity(
        float(np.maximum(a.forward, b.forward)),
        float(np.maximum(a.gradient, b.gradient)),
        tuple(sorted({*a.outliers, *b.outliers})),
        float(np.maximum(a.score, b.score)),
    )
