"""L-BFGS: cross-entropy and squared size minimised together in the unit box, the weight between them searched for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import softplus

from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.methods.cw import narrowed
from guard.offline.attacks.model import Model
from guard.offline.attacks.objective import Gap, LogOdds, gap
from guard.offline.attacks.target import Target, known_target, targets_of
from guard.offline.data.norms import Measure

KEPT_STEPS = 10  # pairs of steps and slopes that stand for the curvature


def lbfgs(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int = 20,
    searches: int = 9,
    constant: float = 0.1,
    targets: Tensor | None = None,
) -> Tensor:
    """Return the smallest fooling point met for each item; an item that is never fooled comes back as it was.

    In L2, deterministic. One item at a time. `constant` is the first weight of fooling against size; it is searched for
    as C&W's is. Costs at most searches * 2 * steps forwards and backwards an item, most often half of that.

    Source: Szegedy et al. 2014, arXiv:1312.6199, section 4.1. They aim at a class; without one, it is the cross-entropy
    of the label against the best other class: against all others together it walks between them, 60 % too far.
    """
    attacked = [
        smallest(
            model,
            inputs[item : item + 1],
            labels[item : item + 1],
            None if targets is None else targets[item : item + 1],
            steps,
            searches,
            constant,
        )
        for item in range(len(inputs))
    ]
    return torch.cat(attacked) if attacked else inputs.clone()


def smallest(
    model: Model, clean: Tensor, label: Tensor, target: Tensor | None, steps: int, searches: int, constant: float
) -> Tensor:
    """Search for one item's smallest fooling point over several weights."""
    best, best_size = clean.clone(), torch.inf
    weight = torch.tensor([constant], dtype=torch.float64)
    lower, upper = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
    for _ in range(searches):
        descent = BoxedDescent(model, clean, label, target, weight.item())
        descent.run(steps)
        if descent.size < best_size:
            best, best_size = descent.found, descent.size
        weight, lower, upper = narrowed(weight, lower, upper, torch.tensor([descent.size < torch.inf]))
    return best


class BoxedDescent:
    """Minimisation for one item and one weight, and the smallest fooling point that it has met."""

    def __init__(self, model: Model, clean: Tensor, label: Tensor, target: Tensor | None, weight: float) -> None:
        self.model, self.clean, self.label, self.target, self.weight = model, clean, label, target, weight
        self.found, self.size = clean, float("inf")

    def run(self, steps: int) -> None:
        start = self.clean.detach().cpu().double().numpy().ravel()
        limits = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": KEPT_STEPS}
        minimize(self.loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * start.size, options=limits)

    def loss(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return squared size plus weighted cross-entropy, and their gradient."""
        point = torch.from_numpy(flat).reshape(self.clean.shape).to(self.clean)
        aim = Gap(self.label) if self.target is None else LogOdds(self.label, self.target)
        logits, odds, rise = self.model.value_and_gradient(point, aim)
        step = (point - self.clean).double()
        size = step.norm().item()
        if size < self.size and gap(logits, self.label, self.target).item() > 0:
            self.found, self.size = point, size
        loss = size**2 + self.weight * softplus(-odds).item()
        slope = 2 * step - self.weight * torch.sigmoid(-odds).item() * rise.double()
        return loss, slope.cpu().numpy().ravel()


@dataclass(frozen=True, repr=False)
class Lbfgs:
    """L-BFGS attack as a value."""

    name: ClassVar[str] = "lbfgs"
    family: ClassVar[Family] = Family.LOW_CONFIDENCE
    norm: ClassVar[Measure] = "l2"
    budget: ClassVar[float | None] = None
    traits: ClassVar[Traits] = Traits()

    steps: int = 20
    searches: int = 9
    constant: float = 0.1
    target: Target | None = None

    def __post_init__(self) -> None:
        whole(self, "steps", "searches")
        more_than_zero(self, "constant")
        known_target(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        targets = targets_of(self.target, model, inputs, labels, generator)
        return lbfgs(
            model,
            inputs,
            labels,
            steps=self.steps,
            searches=self.searches,
            constant=self.constant,
            targets=targets,
        )

    def __repr__(self) -> str:
        return call_text(self)
