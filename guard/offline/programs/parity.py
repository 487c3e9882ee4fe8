"""Parity check: a program's ONNX Runtime outputs agree with torch's on real inputs, or no bundle is written.

Rule 1: each output of each item agrees on its own scale (`outputs.py`): logits by their spread and by the class that
they name, scores in clean standard deviations. Of what rests on gradients 1 % of the items may be beyond.
Rule 2: further items are forgiven only where double precision explains them (`judge.py`): at most EXPLAINED_SHARE of
them in an output of forward passes, and in every output at least half of the items agree with it, forgiven or not;
unless torch in single precision does not agree with it on half of them either.
Rule 3: a class that is named otherwise is never forgiven, unless two classes tie; `verdicts.py` has the last word.

How it works. Torch and ONNX Runtime compute the same items, ONNX Runtime in batches of 1 and of 7. An error is counted
in what is tolerated of the item in this output, so that 1 is the limit everywhere. Where more items are beyond it than
may be, the errors are measured again from a double-precision copy of the program.

Example: of 100 items 97 have a gradient error of 0.01 of what is tolerated, and three of 20, 30 and 50. One may be
beyond, so double precision judges. Say that it finds the same errors, and that nudges of at most 2**-20 move the exact
gradients of the three by 20, 20 and 0.1. The first two lie on kinks (20 and 30 are at most 2 * 20) and are forgiven;
the third does not (50 is more than 2 * 0.1), but is the one that may be beyond. The program passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from guard.agreement import decided_otherwise
from guard.fusion import Floats
from guard.offline.programs.judge import Checked, Judgement, judge
from guard.offline.programs.outputs import OutputScale
from guard.offline.programs.refusal import Disagreement
from guard.session import Session

EXPLAINED_SHARE = 0.1  # of the items, of what rests on forward passes
BATCH_ITEMS = (1, 7)
# Items that torch computes at once: a gradient keeps every activation, 60 MB an item at 224 x 224
TORCH_BATCH_ITEMS = 16


@dataclass(frozen=True)
class Parity:
    """What the comparison of ONNX Runtime with torch on real inputs found, the worst of the batch sizes tried."""

    errors: Mapping[str, float]  # by output: the largest that was not forgiven, in what is tolerated
    outliers: tuple[int, ...] = ()  # items beyond what is tolerated in any output
    explained: tuple[int, ...] = ()  # those of them that double precision explains


@dataclass(frozen=True, eq=False)
class Comparison:
    """Outputs of one program in ONNX Runtime and in torch, on the same items."""

    name: str
    scale: OutputScale
    expected: list[NDArray[Any]]  # of torch, by compared output [item, ...]
    founds: Sequence[list[NDArray[Any]]]  # of ONNX Runtime, the same for each batch size

    @property
    def errors(self) -> Floats:
        """Errors [item, output], in what is tolerated; NaN where something is no number."""
        return np.asarray(np.max([self.scale.errors(found, self.expected) for found in self.founds], axis=0))

    def check_decisions(self) -> None:
        """Check that every item is named the same class, ties left out. Raises ParityError."""
        for place, output in enumerate(self.scale.outputs):
            if output.kind != "logits":
                continue
            for found in self.founds:
                other = decided_otherwise(found[place], self.expected[place], self.scale.allowed[:, place])
                if other.any():
                    raise self.refusal(place, other, "; another class is named").error()

    def check(self, errors: Floats, judgement: Judgement | None) -> Parity:
        """Check errors [item, output] against the rules. Raises ParityError."""
        beyond = ~(errors <= 1)
        explained = np.zeros_like(beyond) if judgement is None else beyond & judgement.explained
        left = beyond & ~explained
        most: dict[str, float] = {}
        for place, output in enumerate(self.scale.outputs):
            may = self.scale.may_differ[place]
            why = f"; {int(explained[:, place].sum())} more are explained by double precision"
            if left[:, place].sum() > may:
                raise self.refusal(place, left[:, place], why, judgement).error()
            many = output.forward and explained[:, place].sum() > EXPLAINED_SHARE * len(errors)
            blurred = judgement is not None and bool(judgement.blurred[place])
            if not blurred and (many or not np.median(errors[:, place]) <= 1):
                agree = f"at least {1 - EXPLAINED_SHARE:.0%}" if output.forward else "at least half"
                why = f"; rounding or kinks explain {int(explained[:, place].sum())}, but {agree} must agree"
                raise self.refusal(place, beyond[:, place], why, judgement).error()
            kept = np.sort(np.where(explained[:, place], 0.0, errors[:, place]))
            most[output.name] = round(float(kept[len(kept) - 1 - may]), 4)
        return Parity(most, places(~(self.errors <= 1)), places(explained))

    def refusal(
        self, place: int, items: NDArray[np.bool_], why: str, judgement: Judgement | None = None
    ) -> Disagreement:
        """Describe the worst of these items in one output."""
        worst = np.where(items, np.nan_to_num(self.errors[:, place], nan=np.inf), -1.0)
        item = int(worst.argmax())
        of_size = [self.scale.errors(found, self.expected)[item, place] for found in self.founds]
        found = self.founds[int(np.argmax(np.nan_to_num(of_size, nan=np.inf)))]
        return Disagreement(
            self.name,
            self.scale.outputs[place],
            np.flatnonzero(items),
            item,
            found[place][item],
            self.expected[place][item],
            None if judgement is None else judgement.truth[place][item],
            float(self.scale.allowed[item, place]),
            len(items),
            why,
        )


def places(items: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the items with anything in any output [item, output]."""
    return tuple(int(item) for item in np.flatnonzero(items.any(axis=1)))


def check_parity(name: str, program: Checked, session: Session, wire: NDArray[Any]) -> Parity:
    """Compare one written program with torch on real inputs, in batches of two sizes.

    Raises:
        ParityError: the program breaks the rules; the message names output and item, both values, and what to do.
    """
    expected = program.split(in_parts(program, wire))
    founds = [program.split(served(session, program, wire, size)) for size in BATCH_ITEMS]
    comparison = Comparison(name, OutputScale.of(program.compared, expected), expected, founds)
    comparison.check_decisions()
    errors = comparison.errors
    if ((~(errors <= 1)).sum(axis=0) <= comparison.scale.may_differ).all():
        return comparison.check(errors, None)
    judgement = judge(program, wire, comparison.scale, founds, expected)
    return comparison.check(judgement.errors, judgement)


def served(session: Session, program: Checked, wire: NDArray[Any], size: int) -> list[NDArray[np.float32]]:
    """Return ONNX Runtime's outputs in batches of a size, [item, ...] each."""
    parts = [session.run(program.outputs, wire[i : i + size]) for i in range(0, len(wire), size)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def in_parts(program: Checked, wire: NDArray[Any]) -> list[NDArray[np.float32]]:
    """Return the program's outputs in torch, [item, ...] each."""
    module, size = cast(nn.Module, program), TORCH_BATCH_ITEMS
    with torch.no_grad():
        parts = [module(torch.from_numpy(wire[i : i + size])) for i in range(0, len(wire), size)]
    return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
