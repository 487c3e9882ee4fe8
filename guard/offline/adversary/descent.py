"""Adaptive attack: projected sign descent by an attacker who knows model, detectors, fusion and threshold.

Rule 1: an item's result is never worse than its start, and depends on no other item.
Rule 2: every point is judged where it will be served, on the data's grid; the gradient passes through the rounding.

How it works. The guard is one differentiable function: images -> the model's logits, and the excess of the risk over
each threshold. A step looks at every open item: it computes the class margin and the excess, and `directions.py` turns
their gradients into one direction. The item moves against the sign of that direction, and is cut back to the ball and
to the unit box. The best point looked at is kept. An item that fools the model and lies safely below the last threshold
is settled: it leaves, and costs no further pass.

For example a value of 100/255, a budget of 8/255 and 25 steps. The steps fall along a line from 4/255 to 0.16/255; the
first three are 4, 3.84 and 3.68 of 255. While the direction is positive the value goes to 96/255, to 92.16/255, and
then, cut back to the ball, to 92/255. What is judged is the point on the grid: 96, 92 and 92 of 255. With `selective`
the direction is the margin's gradient while the margin is above -0.5 logits, and the excess's gradient afterwards. If
it never settles, the item costs 26 forwards and, with `selective`, 25 backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from guard.offline.adversary.directions import DIRECTIONS, RISK_MARGIN, Method, Sight
from guard.offline.adversary.guides import Guide, Guides
from guard.offline.attacks.norm_ball import per_item
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import Grid

TARGET_CLASSES = 3  # likeliest wrong classes that `several_targets` descends towards, one after another
METHODS: tuple[Method, ...] = ("several_targets", "adapted")
ALL_METHODS: tuple[Method, ...] = tuple(DIRECTIONS)


class Known(Protocol):
    """Attacked guard as one differentiable function of the images."""

    def __call__(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Map unit-space images [item, ...] to logits [item, class] and excess [item, rate] over falling thresholds."""
        ...


@dataclass(frozen=True)
class AdaptiveResult:
    """Best inputs that an adaptive attack found, on the data's grid."""

    images: Tensor  # [item, ...] unit space
    fooled: Tensor  # [item] bool: another class than the true one
    excess: Tensor  # [item, rate]; negative passes the guard

    @property
    def success(self) -> Tensor:
        """Whether an item fools the model and passes the guard at the first rate [item]."""
        return self.fooled & (self.excess[:, 0] < 0)

    @property
    def settled(self) -> Tensor:
        """Whether an item [item] fools the model and is safely below the last threshold: nothing is left to gain."""
        return self.fooled & (self.excess[:, -1] < -RISK_MARGIN)

    def where(self, items: Tensor, other: AdaptiveResult) -> AdaptiveResult:
        """Return this result with the rows of `other` at the items selected by `items` [item] bool."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return AdaptiveResult(*(torch.where(per_item(items, mine), theirs, mine) for mine, theirs in pairs))

    def take(self, index: Tensor) -> AdaptiveResult:
        return AdaptiveResult(*(getattr(self, f.name)[index] for f in fields(self)))


def descents_of(method: Method) -> int:
    """Return how often a method descends from each point that it begins at, at most."""
    return TARGET_CLASSES if method == "several_targets" else 1


@dataclass(frozen=True)
class AttackedItems:
    """Items under attack, their labels, and the guide or the class towards which they are driven, if there is one."""

    inputs: Tensor
    labels: Tensor
    guide: Guide | None
    target: Tensor | None = None  # [item] class

    def take(self, index: Tensor) -> AttackedItems:
        guide = None if self.guide is None else self.guide.take(index)
        target = None if self.target is None else self.target[index]
        return AttackedItems(self.inputs[index], self.labels[index], guide, target)


def adaptive(
    known: Known,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    steps: int,
    generator: torch.Generator,
    grid: Grid,
    method: Method,
    start: Tensor | None = None,
    guides: Guides | None = None,
    heard: Callable[[int], None] | None = None,
) -> AdaptiveResult:
    """Descend class margin and excess risk together in an L-infinity ball; keep each item's best point of two descents.

    The first descent begins at `start` (a static attack's result), the second at a random point of the ball, for items
    that are not settled by then; without `start` there is only the second. `several_targets` makes each of them once
    for every class that it is driven towards. `heard` receives the number of open items at each step.

    Raises:
        ValueError: feature matching without guides.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative; got {steps}")
    radius = radius_of(budget, grid, inputs)
    noise = torch.rand(inputs.shape, generator=generator, device=generator.device).to(inputs.device) * 2 - 1
    random = (inputs + radius * noise).clamp(0.0, 1.0)
    best: AdaptiveResult | None = None
    begins = (random,) if start is None else (start, random)
    for begin, target in product(begins, targets_of(known, inputs, labels, method)):
        left = torch.arange(len(inputs), device=inputs.device) if best is None else (~best.settled).nonzero()[:, 0]
        if len(left) == 0:
            continue
        guide = guide_of(begin[left], labels[left], method, guides)
        attacked = AttackedItems(inputs[left], labels[left], guide, None if target is None else target[left])
        descent = Descent(known, radius, steps, grid, method, heard)
        found = descent.run(attacked, begin[left])
        best = found if best is None else merged(best, left, found)
    if best is None:
        raise ValueError("adaptive needs at least one item")
    return best


def targets_of(known: Known, inputs: Tensor, labels: Tensor, method: Method) -> Sequence[Tensor | None]:
    """Return the wrong classes to descend towards, each [item], likeliest first; None: whichever leads at a step.

    They are ranked by the model's logits on the clean items.
    """
    if method != "several_targets":
        return (None,)
    with torch.no_grad():
        logits = known(inputs)[0]
    truth = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    ranked = logits.masked_fill(truth, -torch.inf).argsort(dim=1, descending=True)[:, :-1]
    return ranked[:, :TARGET_CLASSES].unbind(dim=1)


def guide_of(begin: Tensor, labels: Tensor, method: Method, guides: Guides | None) -> Guide | None:
    """Return the guide that feature matching leads each item to, or None for every other method."""
    if method != "feature_matching":
        return None
    if guides is None:
        raise ValueError("feature matching needs clean items as guides")
    with torch.no_grad():
        return guides.choose(guides.known.evidence(begin), labels)


@dataclass(frozen=True)
class Descent:
    """Projected sign descent, its step falling along a line from half the ball's radius to a fiftieth of it."""

    known: Known
    radius: float | Tensor  # of all values, or of each feature [feature]
    steps: int
    grid: Grid
    method: Method
    heard: Callable[[int], None] | None

    def run(self, attacked: AttackedItems, begin: Tensor) -> AdaptiveResult:
        """Return each item's best point; items that are settled leave, so a step costs only the open ones."""
        current, left = begin, torch.arange(len(begin), device=begin.device)
        best: AdaptiveResult | None = None
        log_odds: Tensor | None = None
        for step in range(self.steps + 1):
            sight, seen = self.look(current, attacked.take(left), log_odds)
            best = seen if best is None else merged(best, left, seen)
            if step == self.steps:
                break
            direction = DIRECTIONS[self.method](sight)
            stay = ~best.settled[left]
            if self.heard is not None:
                self.heard(len(left))
            left, log_odds = left[stay], sight.next_log_odds[stay].detach()
            if len(left) == 0:
                break
            size = self.radius * (0.5 - 0.48 * step / max(self.steps - 1, 1))
            centre = attacked.inputs[left]
            current = current[stay] - size * direction[stay].sign()
            current = torch.minimum(torch.maximum(current, centre - self.radius), centre + self.radius).clamp(0.0, 1.0)
        if best is None:
            raise ValueError(f"steps must not be negative; got {self.steps}")
        return best

    def look(self, points: Tensor, attacked: AttackedItems, log_odds: Tensor | None) -> tuple[Sight, AdaptiveResult]:
        with torch.enable_grad():
            point = points.detach().requires_grad_(True)
            served = on_grid(point, self.grid)
            distance = None
            if attacked.guide is not None:
                opened = attacked.guide.known
                evidence = opened.evidence(served)
                (logits, excess), distance = opened.judge(evidence), attacked.guide.distance(evidence)
            else:
                logits, excess = self.known(served)
            margin = class_margin(logits, attacked.labels)
            followed = margin if attacked.target is None else -class_margin(logits, attacked.target)
            sight = Sight(point, followed, excess, distance, log_odds)
        return sight, AdaptiveResult(served.detach(), margin.detach() < 0, excess.detach())


def class_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the true class's logit minus the best other logit [item]; negative means that the model is fooled."""
    truth = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits[truth] - logits.masked_fill(truth, -torch.inf).amax(dim=1)


def radius_of(budget: float, grid: Grid, like: Tensor) -> float | Tensor:
    """Return how far values may move in whole steps: all alike, or each feature as far as its own steps allow."""
    if isinstance(grid, FeatureGrid):
        return torch.from_numpy(grid.limits(budget)).to(like.device, like.dtype)
    return budget if grid is None else int(budget * grid + 1e-6) / grid


def on_grid(images: Tensor, grid: Grid) -> Tensor:
    """Snap images to the data's grid; the gradient is that of the identity (straight-through)."""
    if isinstance(grid, FeatureGrid):
        return grid.straight_through(images)
    return images if grid is None else images + (torch.round(images * grid) / grid - images).detach()


def merged(best: AdaptiveResult, index: Tensor, found: AdaptiveResult) -> AdaptiveResult:
    """Return `best` with the better of `best` and `found` at the items `index`."""
    kept = better(best.take(index), found)
    return AdaptiveResult(
        *(getattr(best, f.name).index_copy(0, index, getattr(kept, f.name)) for f in fields(AdaptiveResult))
    )


def better(a: AdaptiveResult, b: AdaptiveResult) -> AdaptiveResult:
    """Choose item by item: fooling beats not fooling, then more thresholds passed, then less excess over the next."""
    return a.where(beats(b, a), b)


def beats(b: AdaptiveResult, a: AdaptiveResult) -> Tensor:
    """Return whether b is better than a, for each item [item]."""
    (passed_a, over_a), (passed_b, over_b) = standing(a.excess), standing(b.excess)
    further = (passed_b > passed_a) | ((passed_b == passed_a) & (over_b < over_a))
    return (b.fooled & ~a.fooled) | ((b.fooled == a.fooled) & further)


def standing(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many falling thresholds an item passes [item], and its excess over the next, or the last [item]."""
    passed = (excess < 0).long().cumprod(dim=1).sum(dim=1)
    return passed, excess.gather(1, passed.clamp_max(excess.shape[1] - 1)[:, None])[:, 0]
