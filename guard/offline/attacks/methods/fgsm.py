"""Fast gradient sign method: one step of the whole budget along the gradient's sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text, known_norm, more_than_zero
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import Size, furthest
from guard.offline.attacks.objective import LogOdds
from guard.offline.attacks.ranges import Amount, settled, take_ranges
from guard.offline.attacks.target import Target, known_target, targets_of
from guard.offline.data.norms import Norm


def fgsm(
    model: Model, inputs: Tensor, labels: Tensor, *, budget: Size, norm: Norm = "linf", targets: Tensor | None = None
) -> Tensor:
    """Take one step to where the linearised model is worst, within the box as well for L1; deterministic.

    Source: Goodfellow et al. 2015, arXiv:1412.6572, section 4; `norm="l2"` steps along the gradient itself.
    """
    _, _, gradient = model.value_and_gradient(inputs, LogOdds(labels, targets))
    return furthest(inputs, gradient, budget, norm)


@dataclass(frozen=True, repr=False)
class Fgsm:
    """Fast gradient sign method as a value."""

    name: ClassVar[str] = "fgsm"
    family: ClassVar[Family] = Family.SINGLE_STEP
    traits: ClassVar[Traits] = Traits(ranges=("budget",))

    budget: Amount
    norm: Norm = "linf"
    target: Target | None = None

    def __post_init__(self) -> None:
        take_ranges(self)
        more_than_zero(self, "budget")
        known_norm(self)
        known_target(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        targets = targets_of(self.target, model, inputs, labels, generator)
        return fgsm(model, inputs, labels, budget=settled(self.budget), norm=self.norm, targets=targets)

    def __repr__(self) -> str:
        return call_text(self)
