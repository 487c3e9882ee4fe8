"""Carlini and Wagner's L-infinity attack: what exceeds a threshold is penalised, and the threshold falls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import per_item, sizes
from guard.offline.attacks.objective import Gap
from guard.offline.attacks.target import Target, known_target, targets_of
from guard.offline.data.norms import Measure

FALL_FACTOR, RISE_FACTOR = (
    0.7,
    4.0,
)  # factors of the threshold, while an item fools within every one and while it fools within none
# The smallest size that fooled over the largest threshold that did not: an item that is nearer rests
RESTING_FACTOR = 1.01
LAST_PACE_SHARE = 0.1  # of the pace over one descent


def cw_linf(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int = 30,
    searches: int = 12,
    pace: float = 0.15,
    confidence: float = 0.0,
    constant: float = 0.1,
    threshold: float = 0.02,
    targets: Tensor | None = None,
) -> Tensor:
    """Return the smallest fooling point seen for each item; an item that is never fooled comes back as it was.

    Deterministic. `confidence` is how far, in logits, the wrong class must be ahead; `threshold` the first one, `pace`
    the first step in thresholds; `constant` the first weight of fooling against penalty, twice that after every
    threshold that was not kept. Costs at most searches * steps forwards and backwards; an item that keeps its threshold
    rests until the next.

    Source: Carlini & Wagner 2017, arXiv:1608.04644, section VI.C. Their threshold falls by a tenth at a time from one;
    ours searches. Their tanh space, slow where pixels are saturated, is left out: points are cut to the box.
    """
    best, best_size = inputs.clone(), inputs.new_full((len(inputs),), torch.inf)
    bound, weight = torch.full_like(best_size, threshold), torch.full_like(best_size, constant)
    floor = torch.zeros_like(best_size)  # the largest threshold that was not kept
    for _ in range(searches):
        active = (best_size > RESTING_FACTOR * floor).nonzero()[:, 0]
        if len(active) == 0:
            break
        start = inputs + (best - inputs).clamp(-per_item(bound, inputs), per_item(bound, inputs))
        aims = None if targets is None else targets[active]
        points, size = descend(
            model,
            (inputs[active], start[active]),
            (labels[active], aims),
            (bound[active], weight[active]),
            steps=steps,
            pace=pace,
            confidence=confidence,
        )
        better = size < best_size[active]
        best[active[better]], best_size[active[better]] = points[better], size[better]
        kept = best_size <= bound
        resting = torch.ones_like(kept).index_fill(0, active, False)
        floor = torch.where(kept | resting, floor, bound)
        weight = torch.where(kept | resting, weight, 2 * weight)
        falling = torch.where(floor > 0, (floor * best_size).sqrt(), FALL_FACTOR * best_size)
        bound = torch.where(best_size.isfinite(), falling, (RISE_FACTOR * bound).clamp_max(1))
    return best


def descend(
    model: Model,
    points: tuple[Tensor, Tensor],
    classes: tuple[Tensor, Tensor | None],
    terms: tuple[Tensor, Tensor],
    *,
    steps: int,
    pace: float,
    confidence: float,
) -> tuple[Tensor, Tensor]:
    """Descend from (clean, start) under (threshold, weight) [item]; return the smallest fooling points and sizes.

    `classes` are labels and targets. Adam's steps, cut to the box; an item within its threshold that fools has arrived.
    """
    found, found_size = points[0].clone(), torch.full_like(terms[0], torch.inf)
    active = torch.arange(len(found), device=found.device)
    (clean, walk), (labels, targets), (bound, weight) = points, classes, terms
    mean, square = torch.zeros_like(walk), torch.zeros_like(walk)
    for step in range(1, steps + 1):
        _, ahead, rise = model.value_and_gradient(walk, Gap(labels, targets))
        moved = walk - clean
        size = sizes(moved, "linf")
        better = (ahead > confidence) & (size < found_size[active])
        found[active[better]], found_size[active[better]] = walk[better], size[better]
        moving = found_size[active] > bound
        if not moving.any():
            break
        short = weight * (ahead <= confidence)
        gradient = (moved.sign() * (moved.abs() > per_item(bound, walk)) - per_item(short, walk) * rise)[moving]
        mean, square = 0.9 * mean[moving] + 0.1 * gradient, 0.99 * square[moving] + 0.01 * gradient.square()
        active, clean, walk, labels, bound, weight = (
            part[moving] for part in (active, clean, walk, labels, bound, weight)
        )
        targets = None if targets is None else targets[moving]
        ahead_by = (mean / (1 - 0.9**step)) / ((square / (1 - 0.99**step)).sqrt() + 1e-8)
        walk = (walk - per_item(pace * LAST_PACE_SHARE ** (step / steps) * bound, walk) * ahead_by).clamp(0, 1)
    return found, found_size


@dataclass(frozen=True, repr=False)
class CwLinf:
    """Carlini and Wagner's L-infinity attack as a value."""

    name: ClassVar[str] = "cw_linf"
    norm: ClassVar[Measure] = "linf"
    budget: ClassVar[float | None] = None
    traits: ClassVar[Traits] = Traits()

    steps: int = 30
    searches: int = 12
    pace: float = 0.15
    confidence: float = 0.0
    constant: float = 0.1
    threshold: float = 0.02
    target: Target | None = None

    def __post_init__(self) -> None:
        whole(self, "steps", "searches")
        more_than_zero(self, "pace", "constant", "threshold")
        if self.confidence != 0:
            more_than_zero(self, "confidence")
        known_target(self)

    @property
    def family(self) -> Family:
        return Family.HIGH_CONFIDENCE if self.confidence > 0 else Family.LOW_CONFIDENCE

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        targets = targets_of(self.target, model, inputs, labels, generator)
        return cw_linf(
            model,
            inputs,
            labels,
            steps=self.steps,
            searches=self.searches,
            pace=self.pace,
            confidence=self.confidence,
            constant=self.constant,
            threshold=self.threshold,
            targets=targets,
        )

    def __repr__(self) -> str:
        return call_text(self)
