"""The attacker who knows model, detectors, fusion and threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["selective", "weighted"]
Known = Callable[[Tensor], tuple[Tensor, Tensor]]  # unit-space images -> (logits [item, class], excess [item])
METHODS: tuple[Method, ...] = ("selective", "weighted")
CONFIDENCE = 0.5  # margin in logits by which the class is kept lost while the risk is worked on
SLACK = 0.05  # how far below the threshold counts as safely below


@dataclass(frozen=True)
class AdaptiveResult:
    """Best inputs found, on the grid."""

    images: Tensor  # [item, ...] unit space
    fooled: Tensor  # [item] bool: another class than the true one
    excess: Tensor  # [item]; negative passes the guard

    @property
    def success(self) -> Tensor:
        """Fools the model and passes the guard [item]."""
        return self.fooled & (self.excess < 0)


def adaptive(
    known: Known,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    steps: int,
    generator: torch.Generator,
    grid: int | None,
    start: Tensor | None = None,
    methods: tuple[Method, ...] = METHODS,
) -> AdaptiveResult:
    """L-infinity descent on class margin and excess risk together; per item the best of several methods and starts.

    Each method starts from `start` (a static attack's result) and again from a random point of the ball. Iterates are
    judged where they will be served, on the data's grid; the gradient passes straight through the rounding.

    Source: Bryniarski et al. 2021, arXiv:2106.15023 (selective PGD); Carlini & Wagner 2017, arXiv:1705.07263 (weighted
    sum). The orthogonal projection is left out here.
    """
    best: AdaptiveResult | None = None
    radius = budget if grid is None else int(budget * grid + 1e-6) / grid
    for method in methods:
        for first in (start, None):
            noise = torch.rand(inputs.shape, generator=generator) * 2 - 1
            begin = first if first is not None else (inputs + radius * noise).clamp(0.0, 1.0)
            if first is None or start is not None:
                found = descend(known, inputs, labels, begin, radius=radius, steps=steps, grid=grid, method=method)
                best = found if best is None else better(best, found)
    if best is None:
        raise ValueError("adaptive needs at least one method")
    return best


def descend(
    known: Known,
    inputs: Tensor,
    labels: Tensor,
    begin: Tensor,
    *,
    radius: float,
    steps: int,
    grid: int | None,
    method: Method,
) -> AdaptiveResult:
    """One run of projected sign descent, its step falling along a line from half the ball to a fiftieth of it."""
    current = begin.clone()
    best: AdaptiveResult | None = None
    for step in range(steps + 1):
        point = current.detach().requires_grad_(True)
        served = on_grid(point, grid)
        logits, excess = known(served)
        margin = class_margin(logits, labels)
        now = AdaptiveResult(served.detach(), margin.detach() < 0, excess.detach())
        best = now if best is None else better(best, now)
        if step == steps:
            break
        direction = descent_direction(margin, excess, point, method)
        size = radius * (0.5 - 0.48 * step / max(steps - 1, 1))
        current = current - size * direction.sign()
        current = torch.minimum(torch.maximum(current, inputs - radius), inputs + radius).clamp(0.0, 1.0)
    if best is None:
        raise ValueError("steps must not be negative")
    return best


def descent_direction(margin: Tensor, excess: Tensor, point: Tensor, method: Method) -> Tensor:
    """What to walk against.

    Selective: the margin until the class is lost, the risk afterwards; weighted: both at unit length.
    """
    wants_class = (margin > -CONFIDENCE).to(point.dtype)
    if method == "selective":  # items do not depend on each other, so that one backward does for both
        mixed = (wants_class * margin).sum() + ((1 - wants_class) * excess).sum()
        return torch.autograd.grad(mixed, point)[0]
    (by_margin,) = torch.autograd.grad(margin.sum(), point, retain_graph=True)
    (by_excess,) = torch.autograd.grad(excess.sum(), point)
    wants_pass = (excess > -SLACK).to(point.dtype)
    return shaped(0.2 + wants_class, point) * unit(by_margin) + shaped(0.2 + wants_pass, point) * unit(by_excess)


def class_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """True class's logit minus the best other one's [item]; negative: the model is fooled."""
    truth = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits[truth] - logits.masked_fill(truth, -torch.inf).amax(dim=1)


def on_grid(images: Tensor, grid: int | None) -> Tensor:
    """Snapped to the data's grid; the gradient sees the identity."""
    return images if grid is None else images + (torch.round(images * grid) / grid - images).detach()


def better(a: AdaptiveResult, b: AdaptiveResult) -> AdaptiveResult:
    """Item by item: fooling beats not fooling, then the lower risk."""
    take_b = (b.fooled & ~a.fooled) | ((b.fooled == a.fooled) & (b.excess < a.excess))
    return AdaptiveResult(
        torch.where(shaped(take_b, a.images), b.images, a.images),
        torch.where(take_b, b.fooled, a.fooled),
        torch.where(take_b, b.excess, a.excess),
    )


def unit(gradient: Tensor) -> Tensor:
    """Scaled to unit L2 an item; a zero gradient stays zero."""
    return gradient / shaped(gradient.flatten(1).norm(dim=1).clamp_min(1e-12), gradient)


def shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
