"""Basic iterative method: PGD from the input itself, in steps of one of 255 levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.methods.pgd import pgd
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import Size
from guard.offline.attacks.ranges import Amount, Count, settled, take_ranges
from guard.offline.attacks.target import Target, known_target, targets_of
from guard.offline.data.norms import Measure

LEVEL_STEP = 1 / 255


def bim(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: Size,
    steps: int | Tensor | None = None,
    step_size: Size = LEVEL_STEP,
    targets: Tensor | None = None,
) -> Tensor:
    """Return each item's best point of `steps` sign steps, a fooling one before any other; L-infinity, deterministic.

    With the least likely class as target it is the iterative least-likely class method.

    Source: Kurakin et al. 2017, arXiv:1607.02533, sections 2.2 and 2.3: steps of one level, and with a budget of n
    levels the smaller of n + 4 and 1.25 n of them, rounded up. They return the last point.
    """
    return pgd(
        model,
        inputs,
        labels,
        budget=budget,
        steps=original_steps(budget) if steps is None else steps,
        step_size=step_size,
        targets=targets,
        generator=None,
    )


def original_steps(budget: Size) -> int | Tensor:
    """Return the original number of steps for a budget, or for each one of a tensor [item]."""
    levels = budget / LEVEL_STEP
    if isinstance(levels, Tensor):
        return (torch.minimum(levels + 4, 1.25 * levels) - 1e-6).ceil().clamp_min(1).long()
    return math.ceil(min(levels + 4, 1.25 * levels) - 1e-6)


@dataclass(frozen=True, repr=False)
class Bim:
    """Basic iterative method as a value; without `steps` it takes the original number."""

    name: ClassVar[str] = "bim"
    family: ClassVar[Family] = Family.HIGH_CONFIDENCE
    norm: ClassVar[Measure] = "linf"
    traits: ClassVar[Traits] = Traits(ranges=("budget", "steps", "step_size"))

    budget: Amount
    steps: Count | None = None
    step_size: Amount = LEVEL_STEP
    target: Target | None = None

    def __post_init__(self) -> None:
        take_ranges(self)
        more_than_zero(self, "budget", "step_size")
        whole(self, "steps")
        known_target(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        targets = targets_of(self.target, model, inputs, labels, generator)
        return bim(
            model,
            inputs,
            labels,
            budget=settled(self.budget),
            steps=settled(self.steps),
            step_size=settled(self.step_size),
            targets=targets,
        )

    def __repr__(self) -> str:
        return call_text(self)
