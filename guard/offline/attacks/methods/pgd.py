"""Projected gradient descent: many small steepest steps, each pulled back into the ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.attack import Family, Traits, call_text, known_norm, more_than_zero, whole
from guard.offline.attacks.l1_step import sparse_step
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import Size, into_reach, part_of, per_item, uniform
from guard.offline.attacks.objective import LogOdds, gap, log_odds
from guard.offline.attacks.optimiser import Directions, Optimiser, known_optimiser
from guard.offline.attacks.ranges import Amount, AnyOf, Count, ends, settled, take_ranges
from guard.offline.attacks.target import Target, known_target, targets_of
from guard.offline.data.norms import Norm

STEP_FACTOR = 2.5  # of budget / steps: the length of a step


def pgd(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: Size,
    steps: int | Tensor,
    generator: torch.Generator | None,
    norm: Norm = "linf",
    step_size: Size | None = None,
    step_factor: Size = STEP_FACTOR,
    optimiser: Optimiser | Sequence[Optimiser] = "sign",
    random_start: bool | Sequence[bool] = True,
    targets: Tensor | None = None,
) -> Tensor:
    """Climb for all `steps`, and return each item's best point: a fooling one before any other, then the highest loss.

    No item stops when it first fools the model: the points returned are of high confidence. The start is drawn
    from the ball with `generator`; without one, or a `random_start`, it is the input itself (BIM). `step_size` is
    `step_factor` * budget / steps unless given; in L1 steps are sparse and begin longer. Every setting is one for all
    items, or has a value for each [item]. Costs steps + 1 forwards and steps backwards.

    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1. They return the last point; the best is never weaker.
    """
    counts = of_each(steps, inputs)
    stride = of_each(step_factor * budget / steps if step_size is None else step_size, inputs)
    points = start(inputs, budget, norm, generator, random_start=random_start)
    best, best_rank = inputs.clone(), torch.full((len(inputs),), -torch.inf, dtype=torch.float64, device=inputs.device)
    directions = Directions(optimiser, inputs)
    for step in range(int(counts.max())):
        left = (counts > step).nonzero()[:, 0]  # places of the items that have steps to take
        here, own = points[left], None if targets is None else targets[left]
        logits, gradient = climb(model, here, labels[left], own)
        best[left], best_rank[left] = keep(best[left], best_rank[left], here, rank(logits, labels[left], own))
        unit = directions.unit(gradient, left, step, norm)
        if norm == "l1":
            here = here + sparse_step(here, unit, stride[left], step / (counts[left] - 1).clamp_min(1))
        else:
            here = here + per_item(stride[left], here).to(here) * unit
        points[left] = into_reach(here, inputs[left], part_of(budget, left), norm)
    with torch.no_grad():
        logits = model(points)
    return keep(best, best_rank, points, rank(logits, labels, targets))[0]


def of_each(value: Size, inputs: Tensor) -> Tensor:
    """Return a setting's value for each item [item], whether it is one for all of them or not."""
    given = torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else torch.as_tensor(value)
    return given.to(inputs.device).expand(len(inputs))


def start(
    inputs: Tensor,
    budget: Size,
    norm: Norm,
    generator: torch.Generator | None,
    *,
    random_start: bool | Sequence[bool] = True,
) -> Tensor:
    """Draw a random point of the ball for the items with a `random_start`, in L2 and L1 at a radius drawn uniformly.

    Nearly all of such a ball is its surface, and from there the first steps are spent on the way back.
    """
    drawn = of_each(torch.as_tensor(random_start), inputs)
    if generator is None or not bool(drawn.any()):
        return inputs.clone()
    points = drawn_start(inputs, budget, norm, generator)
    return torch.where(per_item(drawn, inputs), points, inputs)


def drawn_start(inputs: Tensor, budget: Size, norm: Norm, generator: torch.Generator) -> Tensor:
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


def one_step_size(attack: Pgd) -> None:
    """Check that the length of a step is stated once, and starts are yes or no. Raises ConfigError."""
    if attack.step_size is not None and attack.step_factor != STEP_FACTOR:
        raise ConfigError(
            f"attack {attack.name!r}: step_size = {attack.step_size!r} and step_factor = {attack.step_factor!r}; "
            "wanted one of them: a length, or one in parts of budget / steps"
        )
    if not all(isinstance(value, bool) for value in ends(attack.random_start)):
        raise ConfigError(f"attack {attack.name!r}: random_start = {attack.random_start!r}; wanted true, false or both")


@dataclass(frozen=True, repr=False)
class Pgd:
    """Projected gradient descent as a value."""

    name: ClassVar[str] = "pgd"
    family: ClassVar[Family] = Family.HIGH_CONFIDENCE
    traits: ClassVar[Traits] = Traits(
        ranges=("budget", "steps", "step_size", "step_factor"), choices=("optimiser", "random_start")
    )

    budget: Amount
    norm: Norm = "linf"
    steps: Count = 40
    step_size: Amount | None = None
    step_factor: Amount = STEP_FACTOR  # of budget / steps, where no step size is given
    optimiser: Optimiser | AnyOf = "sign"
    random_start: bool | AnyOf = True
    target: Target | None = None

    def __post_init__(self) -> None:
        take_ranges(self)
        known_target(self)
        more_than_zero(self, "budget", "step_size", "step_factor")
        whole(self, "steps")
        known_norm(self)
        known_optimiser(self)
        one_step_size(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        targets = targets_of(self.target, model, inputs, labels, generator)
        return pgd(
            model,
            inputs,
            labels,
            budget=settled(self.budget),
            steps=settled(self.steps),
            generator=generator,
            norm=self.norm,
            step_size=settled(self.step_size),
            step_factor=settled(self.step_factor),
            optimiser=settled(self.optimiser),
            random_start=settled(self.random_start),
            targets=targets,
        )

    def __repr__(self) -> str:
        return call_text(self)
