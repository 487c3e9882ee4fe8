"""Fast gradient sign method: one step of the whole budget along the gradient's sign."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Model, Norm, call_text, known_norm, more_than_zero
from guard.offline.attacks.norm_ball import into_reach, steepest
from guard.offline.attacks.objective import LogOdds, value_and_gradient


def fgsm(
    model: Model, inputs: Tensor, labels: Tensor, *, budget: float, norm: Norm = "linf", targets: Tensor | None = None
) -> Tensor:
    """One steepest step; deterministic.

    Source: Goodfellow et al. 2015, arXiv:1412.6572, section 4; `norm="l2"` steps along the gradient itself.
    """
    _, _, gradient = value_and_gradient(model, inputs, LogOdds(labels, targets))
    return into_reach(inputs + budget * steepest(gradient, norm), inputs, budget, norm)


@dataclass(frozen=True, repr=False)
class Fgsm:
    """The untargeted attack as a value."""

    budget: float
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        more_than_zero(self, "budget")
        known_norm(self)

    @property
    def name(self) -> str:
        return "fgsm"

    @property
    def family(self) -> Family:
        return "single-step"

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del generator  # nothing is drawn
        return fgsm(model, inputs, labels, budget=self.budget, norm=self.norm)

    def __repr__(self) -> str:
        return call_text(self)
