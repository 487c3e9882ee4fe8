"""Projected gradient descent: many small steepest steps, each pulled back into the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text, known_norm, more_than_zero, whole
from guard.offline.attacks.l1_step import sparse_step
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import into_reach, per_item, steepest, uniform
from guard.offline.attacks.objective import LogOdds, gap, log_odds
from guard.offline.attacks.target import Target, known_target, targets_of
from guard.offline.data.norms import Norm


def pgd(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    steps: int,
    generator: torch.Generator | None,
    norm: Norm = "linf",
    step_size: float | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Climb for all `steps`, and return each item's best point: a fooling one before any other, then the highest loss.

    No item stops when it first fools the model: the points returned are of high confidence. The start is drawn
    from the ball with `generator`; without one it is the input itself (BIM). `step_size` is
    2.5 * budget / steps unless given; in L1 steps are sparse and begin longer. Costs steps + 1 forwards and steps
    backwards.

    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1. They return the last point; the best is never weaker.
    """
    stride = 2.5 * budget / steps if step_size is None else step_size
    points = start(inputs, budget, norm, generator)
    best, best_rank = inputs, torch.full((len(inputs),), -torch.inf, dtype=torch.float64, device=inputs.device)
    for step in range(steps):
        logits, gradient = climb(model, points, labels, targets)
        best, best_rank = keep(best, best_rank, points, rank(logits, labels, targets))
        if norm == "l1":
            points = points + sparse_step(points, gradient, stride, step / max(steps - 1, 1))
        else:
            points = points + stride * steepest(gradient, norm)
        points = into_reach(points, inputs, budget, norm)
    with torch.no_grad():
        logits = model(points)
    return keep(best, best_rank, points, rank(logits, labels, targets))[0]


def start(inputs: Tensor, budget: float, norm: Norm, generator: torch.Generator | None) -> Tensor:
    """Draw a random point of the ball, in L2 and L1 at a radius drawn uniformly.

    Nearly all of such a ball is its surface, and from there the first steps are spent on the way back.
    """
    if generator is None:
        return inputs
    drawn = uniform(inputs, budget, norm, generator)
    if norm != "linf":
        radius = torch.rand(len(inputs), generator=generator, device=generator.device, dtype=inputs.dtype)
        drawn = drawn * per_item(radius.to(inputs.device), drawn)
    return into_reach(inputs + drawn, inputs, budget, norm)


def climb(model: Model, points: Tensor, labels: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    logits, _, gradient = model.value_and_gradient(points, LogOdds(labels, targets))
    return logits, gradient


def rank(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Rank points by squashed log-odds in (-1, 1), and 2 more for those that fool the model, [item]."""
    odds = log_odds(logits.double(), labels, targets)
    fooled = gap(logits, labels, targets) > 0
    return odds / (1 + odds.abs()) + 2 * fooled


def keep(best: Tensor, best_rank: Tensor, points: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    better = ranks > best_rank
    return torch.where(per_item(better, points), points, best), torch.where(better, ranks, best_rank)


@dataclass(frozen=True, repr=False)
class Pgd:
    """Projected gradient descent as a value."""

    name: ClassVar[str] = "pgd"
    family: ClassVar[Family] = Family.HIGH_CONFIDENCE
    traits: ClassVar[Traits] = Traits()

    budget: float
    norm: Norm = "linf"
    steps: int = 40
    step_size: float | None = None
    random_start: bool = True
    target: Target | None = None

    def __post_init__(self) -> None:
        known_target(self)
        more_than_zero(self, "budget", "step_size")
        whole(self, "steps")
        known_norm(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        targets = targets_of(self.target, model, inputs, labels, generator)
        return pgd(
            model,
            inputs,
            labels,
            budget=self.budget,
            steps=self.steps,
            generator=generator if self.random_start else None,
            norm=self.norm,
            step_size=self.step_size,
            targets=targets,
        )

    def __repr__(self) -> str:
        return call_text(self)
