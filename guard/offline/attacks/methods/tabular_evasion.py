"""Evasion of a table's classifier: along the weights of a local surrogate, under what changing each feature costs.

How it works. Around an item, allowed items are drawn and the model is asked. A sparse linear surrogate is fitted to the
answers: a weight for each number, one for each other category. What the budget allows is then spent on the features
that bring most for their cost, from the clean item on. Where that leads a new surrogate is fitted, with more to spend.

For example weights of +4 for a whole range of hours (cost 1) and of +1.5 for the trade "nurse" (cost 0.5), a budget of
1. Hours bring 4 for a unit of cost, nurse 3, so hours go first: up by 0.6 of their range, where no more of it is left.
The 0.4 that remain do not pay for the trade; with a budget of 1.1 it would change, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.local_surrogate import enough_queries, lasso, parts
from guard.offline.attacks.methods.pgd import rank
from guard.offline.attacks.model import Model
from guard.offline.attacks.objective import log_odds
from guard.offline.data.categories import Changes, Floats, Items, drawn
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.kind_names import OF_FEATURES
from guard.offline.data.norms import Measure

ASKED_ROWS = 1024  # items asked at once
CHANGED_SHARE = 0.25  # of the categories, in an item that is drawn
NEAR_SHARE = 0.5  # mean share of a range by which drawn items weigh exp(-1/2)
PENALTY_SHARE = 0.002  # of the penalty that leaves no weight


def tabular_evasion(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    grid: FeatureGrid,
    cost: float,
    generator: torch.Generator,
    queries: int = 600,
    rounds: int = 6,
    spread: float = 0.25,
) -> Tensor:
    """Spend up to `cost` on changes, and return each item's first fooling point, or its best one.

    The cost of a change is its share of the feature's range times the feature's cost, of a category the cost alone.
    Asks `queries` times an item at most, for answers alone. Items are drawn within `spread` of each range.

    Source: Liu, Yang & Hu 2018, "Adversarial detection with model interpretation" (KDD), sections 3 and 4: the local
    surrogate and the step along its weights under costs. Their choice of seeds near the boundary is left out: all items
    are attacked, and those that fool the model are found afterwards; their costs are guesses of experts, ours settings.
    """
    clean = inputs.detach().flatten(1).cpu().numpy()
    points, best = clean.copy(), clean.copy()
    best_rank = np.full(len(clean), -np.inf)
    active = np.arange(len(clean))
    for number, asked in enumerate(parts(queries - 1, rounds)):
        known = labels[torch.from_numpy(active).to(labels.device)]
        samples = around(grid, points[active], asked, spread, generator)
        odds, ranks = ask(model, samples, inputs, known)
        keep(best, best_rank, points, active, ranks)
        left = ranks <= 1
        active, samples, odds = active[left], samples[left], odds[left]
        if len(active) == 0:
            break
        design = DrawnItems.of(grid, samples, points[active])
        slopes = design.slopes(odds)
        points[active] = spent(grid, clean[active], design, slopes, cost * (number + 1) / rounds)
    if len(active):
        known = labels[torch.from_numpy(active).to(labels.device)]
        keep(best, best_rank, points, active, ask(model, points[active][:, None], inputs, known)[1])
    return torch.from_numpy(best).to(inputs.device).reshape(inputs.shape)


def keep(best: Items, best_rank: Floats, points: Items, active: NDArray[np.int64], ranks: Floats) -> None:
    """Write the points of active items that are better than the best so far over them."""
    better = active[ranks > best_rank[active]]
    best[better] = points[better]
    best_rank[active] = np.maximum(ranks, best_rank[active])


def around(grid: FeatureGrid, points: Items, count: int, spread: float, generator: torch.Generator) -> Items:
    """Draw allowed items [item, sample, feature] around points; the first is the point itself."""
    items = points.repeat(count, axis=0)
    reach = np.maximum(spread * grid.ranges, grid.steps)  # at least a step
    wanted = np.where(grid.moving, (2 * drawn(items.shape, generator) - 1) * reach, 0.0)
    changes = Changes.of(grid.categories, items, items)
    made = drawn(changes.made.shape, generator) < CHANGED_SHARE
    redrawn = changes.drawn_for(made, grid.categories, items, generator)
    samples = grid.composed(items, wanted, redrawn).reshape(len(points), count, -1)
    samples[:, 0] = points
    return samples


def ask(model: Model, samples: Items, like: Tensor, labels: Tensor) -> tuple[Floats, Floats]:
    """Return log-odds [item, sample] against the labels, and each first sample's rank [item], over 1 where it fools."""
    items, count = samples.shape[:2]
    rows = torch.from_numpy(samples.reshape(items * count, -1)).to(like.device, like.dtype)
    rows = rows.reshape(-1, *like.shape[1:])
    with torch.no_grad():
        logits = torch.cat([model(part) for part in rows.split(ASKED_ROWS)])
    odds = log_odds(logits.double(), labels.repeat_interleave(count), None).cpu().numpy().reshape(items, count)
    ranks = rank(logits[::count], labels, None).cpu().numpy()
    return odds.astype(np.float64), ranks.astype(np.float64)


@dataclass(frozen=True, eq=False)
class DrawnItems:
    """Drawn items as a surrogate reads them: shares by which numbers moved, and what each category became."""

    grid: FeatureGrid
    moves: Floats  # [item, sample, column] numbers first, then a column for each category
    starts: tuple[int, ...]  # of each category's columns; the last is the number of all columns
    near: Floats  # [item, sample] weight

    @staticmethod
    def of(grid: FeatureGrid, samples: Items, points: Items) -> DrawnItems:
        """Read drawn items [item, sample, feature] beside the points that they were drawn around."""
        items, count = samples.shape[:2]
        numbers = (samples.astype(np.float64) - points[:, None]) / grid.ranges
        numbers = np.where(grid.moving, numbers, 0.0)
        columns, starts = [numbers], [numbers.shape[2]]
        changed = np.zeros((items, count))
        for category in grid.categories:
            here = category.nearest(points)
            there = category.nearest(samples.reshape(items * count, -1)).reshape(items, count)
            one_hot = np.eye(len(category.values))
            columns.append(one_hot[there] - one_hot[here][:, None])
            starts.append(starts[-1] + len(category.values))
            changed += there != here[:, None]
        distance = (np.abs(numbers).sum(axis=2) + changed) / max(1, int(grid.moving.sum()) + len(grid.categories))
        near = np.exp(-0.5 * (distance / NEAR_SHARE) ** 2)
        return DrawnItems(grid, np.concatenate(columns, axis=2), tuple(starts), near)

    def slopes(self, odds: Floats) -> Floats:
        """Fit weights [item, column] of the change of log-odds."""
        moves, weights = torch.from_numpy(self.moves), torch.from_numpy(self.near)
        change = torch.from_numpy(odds - odds[:, :1])
        found, _ = lasso(moves, change, weights, torch.eye(moves.shape[2], dtype=moves.dtype), PENALTY_SHARE)
        return np.asarray(found.numpy(), dtype=np.float64)


def spent(grid: FeatureGrid, clean: Items, design: DrawnItems, slopes: Floats, budget: float) -> Items:
    """Spend a budget from the clean items on, on what brings most for its cost; return the items [item, feature]."""
    costs = np.asarray([feature.cost for feature in grid.features])
    numbers = clean.shape[1]
    slope = slopes[:, :numbers]
    here = clean / grid.ranges
    room = np.where(grid.moving, np.where(slope > 0, 1 - here, here), 0.0).clip(0)
    chosen, gains, prices = best_changes(grid, clean, design, slopes, costs)
    ratio = np.concatenate([np.abs(slope) / costs, gains / prices], axis=1)
    order = np.argsort(-ratio, axis=1, kind="stable")
    left = np.full(len(clean), budget)
    amount, made = np.zeros_like(room), np.zeros(chosen.shape, dtype=bool)
    rows = np.arange(len(clean))
    steps = grid.steps / grid.ranges  # as shares
    for unit in order.T:
        pays = ratio[rows, unit] > 0
        number, category = pays & (unit < numbers), pays & (unit >= numbers)
        at, column = rows[number], unit[number]
        share = np.minimum(room[at, column], left[at] / costs[column])
        step = steps[column]
        whole_share = np.floor(share / np.where(step > 0, step, 1.0) + 1e-6) * step
        amount[at, column] = np.where(step > 0, whole_share, share)
        left[at] -= amount[at, column] * costs[column]
        at, place = rows[category], unit[category] - numbers
        paid = prices[place] <= left[at] * (1 + 1e-6)
        made[at[paid], place[paid]] = True
        left[at[paid]] -= prices[place[paid]]
    wanted = np.sign(slope) * amount * grid.ranges
    return grid.composed(clean, wanted, Changes(chosen, made, np.zeros(made.shape)))


def best_changes(
    grid: FeatureGrid, clean: Items, design: DrawnItems, slopes: Floats, costs: Floats
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Return the best other category, what it brings and what it costs: [item, category] twice, [category]."""
    shape = (len(clean), len(grid.categories))
    chosen, gains = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    for place, category in enumerate(grid.categories):
        weights = slopes[:, design.starts[place] : design.starts[place + 1]]
        here = category.nearest(clean)
        chosen[:, place] = weights.argmax(axis=1)
        gain = weights.max(axis=1) - weights[np.arange(len(clean)), here]
        gains[:, place] = 0.0 if category.immutable else gain
    return chosen, gains, np.asarray([costs[category.columns[0]] for category in grid.categories], dtype=np.float64)


@dataclass(frozen=True, repr=False)
class TabularEvasion:
    """Evasion along a local surrogate's weights as a value, untargeted. Without features all values cost the same."""

    name: ClassVar[str] = "tabular_evasion"
    family: ClassVar[Family] = Family.QUERY
    traits: ClassVar[Traits] = Traits(asks="answers", features=True, kinds=OF_FEATURES, draws_for_batch=True)
    norm: ClassVar[Measure] = "none"  # what bounds it is a cost
    budget: ClassVar[float | None] = None

    cost: float = 1.0
    queries: int = 600
    rounds: int = 6
    spread: float = 0.25

    def __post_init__(self) -> None:
        more_than_zero(self, "cost", "spread")
        whole(self, "queries", "rounds")
        enough_queries(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return self.among(FeatureGrid.plain(inputs[0].numel()), model, inputs, labels, generator)

    def among(
        self, grid: FeatureGrid, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        return tabular_evasion(
            model,
            inputs,
            labels,
            grid=grid,
            cost=self.cost,
            generator=generator,
            queries=self.queries,
            rounds=self.rounds,
            spread=self.spread,
        )

    def __repr__(self) -> str:
        return call_text(self)
