"""Ascent along SmoothGrad, the gradient averaged over noisy copies that explanations show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text, known_norm, more_than_zero, whole
from guard.offline.attacks.methods.pgd import STEP_FACTOR, keep, of_each, rank, start
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import Size, into_reach, per_item, steepest
from guard.offline.attacks.objective import LogOdds
from guard.offline.attacks.ranges import Amount, settled, take_ranges
from guard.offline.data.norms import Norm


def smoothgrad(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: Size,
    steps: int,
    generator: torch.Generator,
    norm: Norm = "linf",
    step_size: Size | None = None,
    copies: int = 8,
    spread: float = 0.05,
    random_start: bool = True,
    targets: Tensor | None = None,
) -> Tensor:
    """PGD whose gradient is the mean over `copies` with Gaussian noise of standard deviation `spread`, in unit space.

    Kinks and noise average out: the direction is that of the neighbourhood, not of the point. Returns each item's best
    point, as `pgd` does. Costs steps * copies forwards and backwards, and steps + 1 forwards.

    Source: Smilkov et al. 2017, arXiv:1706.03825, section 3.1, as an attack: Liu et al. 2021, arXiv:2004.11488.
    """
    stride = of_each(STEP_FACTOR * budget / steps if step_size is None else step_size, inputs)
    length = per_item(stride, inputs).to(inputs)
    points = start(inputs, budget, norm, generator if random_start else None)
    best, best_rank = inputs, torch.full((len(inputs),), -torch.inf, dtype=torch.float64, device=inputs.device)
    for _ in range(steps):
        best, best_rank = keep(best, best_rank, points, ranked(model, points, labels, targets))
        gradient = averaged(model, points, LogOdds(labels, targets), copies, spread, generator)
        points = into_reach(points + length * steepest(gradient, norm), inputs, budget, norm)
    return keep(best, best_rank, points, ranked(model, points, labels, targets))[0]


def ranked(model: Model, points: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    with torch.no_grad():
        return rank(model(points), labels, targets)


def averaged(
    model: Model, points: Tensor, objective: LogOdds, copies: int, spread: float, generator: torch.Generator
) -> Tensor:
    """Return the mean gradient over noisy copies; they may leave the box, as in the paper."""
    total = torch.zeros_like(points)
    for _ in range(copies):
        noise = torch.randn(points.shape, generator=generator, device=generator.device, dtype=points.dtype)
        total += model.value_and_gradient(points + spread * noise.to(points.device), objective)[2]
    return total / copies


@dataclass(frozen=True, repr=False)
class SmoothGrad:
    """SmoothGrad attack as a value, untargeted."""

    name: ClassVar[str] = "smoothgrad"
    family: ClassVar[Family] = Family.HIGH_CONFIDENCE
    traits: ClassVar[Traits] = Traits(ranges=("budget", "step_size"), draws_for_batch=True)

    budget: Amount
    norm: Norm = "linf"
    steps: int = 20
    step_size: Amount | None = None
    copies: int = 8
    spread: float = 0.05
    random_start: bool = True

    def __post_init__(self) -> None:
        take_ranges(self)
        more_than_zero(self, "budget", "step_size", "spread")
        whole(self, "steps", "copies")
        known_norm(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return smoothgrad(
            model,
            inputs,
            labels,
            budget=settled(self.budget),
            steps=self.steps,
            generator=generator,
            norm=self.norm,
            step_size=settled(self.step_size),
            copies=self.copies,
            spread=self.spread,
            random_start=self.random_start,
        )

    def __repr__(self) -> str:
        return call_text(self)
