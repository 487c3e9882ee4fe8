"""Deletion of the values that Integrated Gradients finds most important, until the prediction changes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.model import Model, Objective
from guard.offline.attacks.objective import LogOdds, gap
from guard.offline.data.norms import Measure
from guard.offline.data.planes import neighbourhood_mean, place_axes

Baseline = Literal["contrary", "black", "mean", "blur"]

BLUR_PIXELS = 5  # of the blur


def ig_deletion(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    rounds: int = 20,
    path: int = 8,
    baseline: Baseline = "contrary",
    targets: Tensor | None = None,
) -> Tensor:
    """Replace the values of highest contribution by the baseline's, a share of them a round; deterministic.

    `budget` is the share of an item's values that may be replaced, over `rounds`; contributions are found anew each
    round along a `path` of so many points, and items that are fooled rest. Costs at most rounds * (path + 1) forwards
    and backwards, and rounds + 1 forwards.

    A baseline of "contrary" is at the end of the box, 0 or 1, at which the gradient expects less for the label; of
    "black", "mean" (each item's and channel's own) and "blur" it is what interpretation deletes with.

    Source: Sundararajan et al. 2017, arXiv:1703.01365, eq. 2; deletion as an attack: Liu et al. 2021, arXiv:2004.11488.
    """
    allowed = int(budget * inputs[0].numel() + 1e-9)
    attacked, replaced = inputs.clone(), torch.zeros_like(inputs, dtype=torch.bool)
    for spent in shares(allowed, rounds):
        left = unfooled(model, attacked, labels, targets)
        if len(left) == 0:
            break
        objective = LogOdds(labels[left], None if targets is None else targets[left])
        points = attacked[left]
        against = baseline_of(model, points, objective, baseline)
        gain = integrated_gradients(model, points, against, objective, path)
        chosen = highest(gain.masked_fill(replaced[left], -torch.inf), spent)
        attacked[left] = torch.where(chosen, against, points)
        replaced[left] |= chosen
    return attacked


def shares(total: int, rounds: int) -> list[int]:
    """Return how many values each round may replace; rounds without any are left out."""
    ends = [total * number // rounds for number in range(rounds + 1)]
    return [after - before for before, after in pairwise(ends) if after > before]


def unfooled(model: Model, points: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Return the indices of the items that the model does not answer wrongly yet."""
    with torch.no_grad():
        return (gap(model(points), labels, targets) <= 0).nonzero()[:, 0]


def baseline_of(model: Model, points: Tensor, objective: Objective, baseline: Baseline) -> Tensor:
    """Return the values that replace a point's, in the points' shape."""
    if baseline == "contrary":
        rise = model.value_and_gradient(points, objective)[2]
        return torch.where(rise == 0, points, (rise > 0).to(points.dtype))
    if baseline == "black":
        return torch.zeros_like(points)
    if baseline == "mean":
        return points.mean(dim=place_axes(points) or (1,), keepdim=True).expand_as(points)
    return neighbourhood_mean(points, BLUR_PIXELS)


def integrated_gradients(model: Model, start: Tensor, end: Tensor, objective: Objective, path: int) -> Tensor:
    """Return each value's share in `objective(end) - objective(start)`; midpoints of the straight path."""
    total = torch.zeros_like(start)
    for number in range(path):
        way = (number + 0.5) / path
        total += model.value_and_gradient(start + way * (end - start), objective)[2]
    return total / path * (end - start)


def highest(gain: Tensor, count: int) -> Tensor:
    """Return a mask of each item's `count` largest entries, those alone that are above zero."""
    flat = gain.flatten(1)
    places = flat.topk(count, dim=1).indices
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter(1, places, value=True)
    return (chosen & (flat > 0)).reshape(gain.shape)


@dataclass(frozen=True, repr=False)
class IgDeletion:
    """Deletion by Integrated Gradients as a value, untargeted; its budget is a share of an item's values."""

    name: ClassVar[str] = "ig_deletion"
    family: ClassVar[Family] = Family.INTERPRETATION
    norm: ClassVar[Measure] = "l0"
    traits: ClassVar[Traits] = Traits()

    budget: float
    rounds: int = 20
    path: int = 8
    baseline: Baseline = "contrary"

    def __post_init__(self) -> None:
        more_than_zero(self, "budget")
        if self.budget > 1:
            raise ConfigError(f"attack 'ig_deletion': budget = {self.budget!r}; wanted a share of at most 1")
        whole(self, "rounds", "path")
        if self.baseline not in get_args(Baseline):
            known = ", ".join(get_args(Baseline))
            raise ConfigError(f"attack 'ig_deletion': baseline = {self.baseline!r}; wanted one of {known}")

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del generator  # nothing is drawn
        return ig_deletion(
            model, inputs, labels, budget=self.budget, rounds=self.rounds, path=self.path, baseline=self.baseline
        )

    def __repr__(self) -> str:
        return call_text(self)
