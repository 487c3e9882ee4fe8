"""Carlini and Wagner's L2 attack: descent in tanh space to the smallest fooling point, its weight searched for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import Size, of_dtype, part_of, per_item, sizes
from guard.offline.attacks.objective import Gap, gap
from guard.offline.attacks.ranges import Amount, settled, smallest, take_ranges
from guard.offline.attacks.target import Target, known_target, targets_of
from guard.offline.data.norms import Measure

BOX_SHARE = 1 - 1e-3  # tanh space begins this far inside the box: on its border the gradient is zero
LAST_RATE_SHARE = 0.1  # of the learning rate over one descent
PLATEAU_CHECKS, MIN_CHECK_STEPS = (
    4,
    10,
)  # checks per descent for items that have arrived, and steps before which a check tells nothing
PLATEAU_SHARE = 0.9999  # an item whose lowest loss did not fall to this share since the last look has arrived


def cw(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int = 100,
    searches: int = 5,
    learning_rate: float = 0.1,
    confidence: Size = 0.0,
    constant: float = 1.0,
    targets: Tensor | None = None,
) -> Tensor:
    """Return the smallest fooling point seen for each item; an item that is never fooled comes back as it was.

    In L2, deterministic. `confidence` is how far, in logits, the wrong class must be ahead. `constant` is the first
    weight of fooling against size; it moves tenfold up while an item resists, or down while it yields, then halves the
    gap in logarithm. Costs at most searches * steps forwards, and a backward for about half of them; items that arrived
    rest.

    Source: Carlini & Wagner 2017, arXiv:1608.04644, section V, f_6. They take 1,000 steps of 0.01 in 9 searches from
    0.001 on, for perturbations under 1 % smaller than ours (digits) at ten times the cost; our steps shrink instead.
    """
    confidence = of_dtype(confidence, inputs)
    best, best_size = inputs.clone(), inputs.new_full((len(inputs),), torch.inf)
    weight = torch.full_like(best_size, constant)
    lower, upper = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
    for _ in range(searches):
        reached = best_size.isfinite()
        points, size = descend(model, inputs, labels, weight, reached, steps, learning_rate, confidence, targets)
        better = size < best_size
        best, best_size = torch.where(per_item(better, best), points, best), torch.minimum(size, best_size)
        weight, lower, upper = narrowed(weight, lower, upper, size.isfinite())
    return best


def narrowed(weight: Tensor, lower: Tensor, upper: Tensor, fooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the next weight of fooling against size, and the bounds of the smallest weight that fools, all [item].

    Tenfold up while an item resists, tenfold down while it yields, then the middle of the gap in logarithm.
    """
    lower, upper = torch.where(fooled, lower, weight), torch.where(fooled, weight, upper)
    between = torch.where(lower == 0, upper / 10, (lower * upper).sqrt())
    return torch.where(upper.isinf(), 10 * weight, between), lower, upper


def descend(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    weight: Tensor,
    reached: Tensor,
    steps: int,
    learning_rate: float,
    confidence: Size,
    targets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the smallest fooling points on the way down, and their sizes [item], infinite where there was none.

    The rate falls for items that were `reached` before [item] or are on the way: far from fooling no step is too long.
    """
    found, found_size = inputs.clone(), torch.full_like(weight, torch.inf)
    active = torch.arange(len(inputs), device=inputs.device)
    walk = torch.atanh((2 * inputs - 1) * BOX_SHARE)
    mean, square = torch.zeros_like(walk), torch.zeros_like(walk)
    ahead = torch.full_like(weight, -torch.inf)
    lowest = looked_at = torch.full_like(weight, torch.inf)  # each item's lowest loss, so far and at the last look
    for step in range(1, steps + 1):
        aims, lead = None if targets is None else targets[active], part_of(confidence, active)
        points, ahead, loss, gradient = slope(
            model, walk, inputs[active], labels[active], weight[active], lead, aims, ahead
        )
        size = sizes(points - inputs[active], "l2")
        better = (ahead > lead) & (size < found_size[active])
        found[active[better]], found_size[active[better]] = points[better], size[better]
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        falls = (reached | found_size.isfinite())[active]
        rate = per_item(torch.where(falls, LAST_RATE_SHARE ** (step / steps), 1.0) * learning_rate, walk).to(walk.dtype)
        walk = walk - rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        lowest = torch.minimum(lowest, loss)
        if step % max(MIN_CHECK_STEPS, steps // PLATEAU_CHECKS) == 0:
            moving = lowest <= PLATEAU_SHARE * looked_at
            active, walk, mean, square = active[moving], walk[moving], mean[moving], square[moving]
            lowest = looked_at = lowest[moving]
            ahead = ahead[moving]
            if len(active) == 0:
                break
    return found, found_size


def slope(
    model: Model,
    walk: Tensor,
    inputs: Tensor,
    labels: Tensor,
    weight: Tensor,
    confidence: Size,
    targets: Tensor | None,
    ahead: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return points, how far the wrong class leads [item], the loss [item] and its gradient in tanh space.

    `ahead` is that of the step before: an item that was far enough ahead is likely to be so still.
    """
    squashed = torch.tanh(walk)
    points = (squashed + 1) / 2
    ahead, rise = rise_if_short(model, points, labels, targets, confidence, ahead > confidence)
    short = (confidence - ahead).clamp_min(0)
    loss = (points - inputs).square().flatten(1).sum(dim=1) + weight * short
    by_point = 2 * (points - inputs) - per_item(weight * (short > 0), points) * rise
    return points, ahead, loss, by_point * (1 - squashed.square()) / 2


def rise_if_short(
    model: Model, points: Tensor, labels: Tensor, targets: Tensor | None, confidence: Size, likely: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how far the wrong class leads [item], and its gradient; zero where it leads enough, and none is needed.

    Those where that is `likely` get a forward alone first, which spares about half of all steps their backward.
    """
    ahead, rise = torch.zeros_like(likely, dtype=points.dtype), torch.zeros_like(points)
    if likely.any():
        with torch.no_grad():
            ahead[likely] = gap(model(points[likely]), labels[likely], None if targets is None else targets[likely])
    left = ~likely | (ahead <= confidence)
    if left.any():
        aim = Gap(labels[left], None if targets is None else targets[left])
        _, ahead[left], rise[left] = model.value_and_gradient(points[left], aim)
    return ahead, rise


@dataclass(frozen=True, repr=False)
class Cw:
    """Carlini and Wagner's L2 attack as a value."""

    name: ClassVar[str] = "cw"
    norm: ClassVar[Measure] = "l2"
    budget: ClassVar[float | None] = None
    traits: ClassVar[Traits] = Traits(ranges=("confidence",))

    steps: int = 100
    searches: int = 5
    learning_rate: float = 0.1
    confidence: Amount = 0.0
    constant: float = 1.0
    target: Target | None = None

    def __post_init__(self) -> None:
        take_ranges(self)
        known_target(self)
        whole(self, "steps", "searches")
        more_than_zero(self, "learning_rate", "constant")
        if self.confidence != 0:
            more_than_zero(self, "confidence")

    @property
    def family(self) -> Family:
        return Family.HIGH_CONFIDENCE if (smallest(self.confidence) or 0) > 0 else Family.LOW_CONFIDENCE

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        targets = targets_of(self.target, model, inputs, labels, generator)
        return cw(
            model,
            inputs,
            labels,
            steps=self.steps,
            searches=self.searches,
            learning_rate=self.learning_rate,
            confidence=settled(self.confidence),
            constant=self.constant,
            targets=targets,
        )

    def __repr__(self) -> str:
        return call_text(self)
