"""Grid of a table's features: the values that an attacked or noisy item may have, and its distance from its clean one.

Rule 1: an item on the grid has whole steps, categories that exist, one 1 in each one-hot group; every feature lies in
its range, and immutable ones are as they were.
Rule 2: distances are shares of each feature's range. Another category, whichever, is as far as a whole range.
Rule 3: what an item keeps it keeps bit for bit.

For example a budget of 0.1 in L-infinity: an age of 17 to 90 moves by up to 7 whole years, 0.1 of 73; a trade stays
what it is. In L1 with a budget of 1.5 a trade may change, and half a range of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.feature_values import within
from guard.features import NUMERIC, STEP_TOLERANCE, Feature, groups_of, only_names, unnamed
from guard.manifest import InputSpec
from guard.offline.data.categories import TOLERANCE_SHARE, Category, Changes, Floats, Items, drawn
from guard.offline.data.norms import Measure
from guard.value_box import ValueBox

SHRINKS = np.linspace(1, 0, 51)
CONTINUOUS_TOLERANCE = 1e-4  # in unit space, by which values may leave their range


@dataclass(frozen=True)
class FeatureGrid:
    """Features of a table's items in unit space."""

    features: tuple[Feature, ...]
    box: ValueBox

    @staticmethod
    def plain(count: int) -> FeatureGrid:
        """Return the grid of numbers in the unit box, without steps and all at the same cost."""
        features = tuple(Feature(name, NUMERIC, 0.0, 1.0) for name in unnamed(count))
        return FeatureGrid(features, ValueBox((0.0,) * count, (1.0,) * count, 1, "NC"))

    @staticmethod
    def of(spec: InputSpec) -> FeatureGrid | None:
        """Return the grid of a model's features, or None where they are nothing but names of numbers."""
        return None if only_names(spec.features) else FeatureGrid(spec.features, spec.box)

    @cached_property
    def categories(self) -> tuple[Category, ...]:
        """The categories in the order of their first columns."""
        groups = groups_of(self.features)
        alone = [[place] for place, f in enumerate(self.features) if f.is_category and f.group is None]
        every = sorted([*alone, *groups.values()])
        return tuple(
            Category(tuple(columns), self.category_values(columns), self.features[columns[0]].immutable)
            for columns in every
        )

    def category_values(self, columns: list[int]) -> tuple[tuple[float, ...], ...]:
        """Return the values of each category in its columns, in unit space."""
        if len(columns) > 1:
            return tuple(tuple(float(one == other) for other in columns) for one in columns)
        codes = np.asarray(self.features[columns[0]].categories, dtype=np.float32)
        low, span = np.float32(self.box.low[columns[0]]), self.unit_spans[columns[0]]
        return tuple((float(code),) for code in (codes - low) / span)

    @cached_property
    def unit_spans(self) -> NDArray[np.float32]:
        """Size in wire values of the unit interval of each feature [feature]."""
        low, high = self.box.bounds
        return high - low

    @cached_property
    def ranges(self) -> Floats:
        """Size in unit space of each feature's range [feature]; 1 but where whole numbers take a wider box."""
        return np.asarray([f.span for f in self.features]) / self.unit_spans.astype(np.float64)

    @cached_property
    def steps(self) -> Floats:
        """Size in unit space of each feature's step [feature]; 0 where it has none."""
        return np.asarray([f.step or 0.0 for f in self.features]) / self.unit_spans.astype(np.float64)

    @cached_property
    def moving(self) -> NDArray[np.bool_]:
        """Indicator [feature] of numbers that may change."""
        return np.asarray([not f.immutable and not f.is_category for f in self.features])

    @cached_property
    def mutable(self) -> NDArray[np.bool_]:
        """Indicator [feature] of features that may change."""
        return np.asarray([not f.immutable for f in self.features])

    def snap(self, images: NDArray[np.floating]) -> Items:
        """Bring unit-space items [item, feature] to the nearest values that their features may have."""
        low, _ = self.box.bounds
        wire = within(low.astype(np.float64) + images.astype(np.float64) * self.unit_spans, self.features)
        snapped = self.box.to_unit(wire)
        free = [f.step is None and not f.is_category for f in self.features]
        snapped[:, free] = images[:, free].astype(np.float32).clip(0, self.ranges[free].astype(np.float32))
        for category in self.categories:
            if len(category.columns) > 1:
                snapped[:, list(category.columns)] = np.asarray(category.values)[category.nearest(images)]
        return snapped

    def contains(self, images: Items) -> bool:
        """Return whether every item [item, feature] is on the grid."""
        return len(images) == 0 or bool(np.abs(self.snap(images) - images).max() <= CONTINUOUS_TOLERANCE)

    def limits(self, budget: float | Floats) -> Floats:
        """Return how far each number may move in L-infinity [feature], in unit space: as many whole steps as fit.

        Of budgets [item] it is [item, feature].
        """
        free = np.multiply.outer(budget, self.ranges)
        steps = np.broadcast_to(self.steps, free.shape)
        whole = np.floor(np.divide(free, steps, out=np.zeros_like(free), where=steps > 0) + TOLERANCE_SHARE)
        return np.where(self.moving, np.where(self.steps > 0, whole * self.steps, free), 0.0)

    def within(self, points: Items, clean: Items, budget: float | Floats | None, norm: Measure) -> Items:
        """Bring points [item, feature] onto the grid, and within a budget of their clean items, which are on it.

        The budget is one for all items, or has one for each [item].
        """
        wanted = np.where(self.moving, points.astype(np.float64) - clean, 0.0)
        changes = Changes.of(self.categories, points, clean)
        if budget is None or norm == "none":
            return self.composed(clean, wanted, changes)
        if norm == "linf":
            limits = self.limits(budget)
            return self.composed(
                clean, wanted.clip(-limits, limits), changes.kept(np.asarray(budget >= 1).reshape(-1, 1))
            )
        if norm == "l0":
            columns = np.floor(np.asarray(budget) * len(self.features) + TOLERANCE_SHARE).reshape(-1, 1)
            return self.few(clean, wanted, changes, columns)
        power = 2.0 if norm == "l2" else 1.0
        kept = changes.first(np.broadcast_to(budget**power, len(clean)))
        room = (budget**power - kept.count).clip(0) ** (1 / power)
        return self.composed(clean, self.shrunk(clean, wanted, room, power), kept)

    def shrunk(self, clean: Items, wanted: Floats, room: Floats, power: float) -> Floats:
        """Shorten what numbers move by until, in whole steps, it fits into the room [item] that is left."""
        result, outside = np.zeros_like(wanted), np.ones(len(wanted), dtype=bool)
        for shrink in SHRINKS:
            tried = shrink * wanted[outside]
            moved = self.composed(clean[outside], tried, None) - clean[outside].astype(np.float64)
            length = np.linalg.norm(moved / self.ranges, ord=power, axis=1)
            fits = length <= room[outside] * (1 + TOLERANCE_SHARE)
            places = np.flatnonzero(outside)
            result[places[fits]] = tried[fits]
            outside[places[fits]] = False
            if not outside.any():
                break
        return result

    def few(self, clean: Items, wanted: Floats, changes: Changes, columns: Floats) -> Items:
        """Keep the largest changes, of no more columns [item, 1] than allowed."""
        moved = self.composed(clean, wanted, None) - clean.astype(np.float64)
        sizes = np.concatenate([np.abs(moved) / self.ranges, np.where(changes.made, 1 + changes.sizes, 0.0)], axis=1)
        weights = np.asarray([1] * len(self.features) + [min(2, len(c.columns)) for c in self.categories])
        order = np.argsort(-sizes, axis=1, kind="stable")
        taken = np.where(np.take_along_axis(sizes, order, axis=1) > 0, weights[order], 0).cumsum(axis=1) <= columns
        kept = np.zeros(sizes.shape, dtype=bool)
        np.put_along_axis(kept, order, taken, axis=1)
        numbers = len(self.features)
        return self.composed(clean, np.where(kept[:, :numbers], wanted, 0.0), changes.kept(kept[:, numbers:]))

    def composed(self, clean: Items, wanted: Floats, changes: Changes | None) -> Items:
        """Return clean items with their numbers moved and their categories changed; what stays, stays bit for bit."""
        moved = self.snap(clean + wanted)
        result = np.where(self.moving & (wanted != 0), moved, clean)
        if changes is not None:
            for place, category in enumerate(self.categories):
                made = changes.made[:, place]
                values = np.asarray(category.values, dtype=np.float32)[changes.chosen[made, place]]
                result[np.ix_(np.flatnonzero(made), np.asarray(category.columns))] = values
        return np.asarray(result, dtype=np.float32)

    def noise(self, clean: Items, attacked: Items, generator: torch.Generator) -> Items:
        """Return clean items changed as much as the attacked ones, elsewhere: the same amounts, as many categories.

        The amounts that numbers moved by, as shares of their ranges, go to other numbers, up or down; a fraction of a
        step is rounded up as often as it is large. As many categories change, others, to any other one.
        """
        wanted = np.zeros(clean.shape)
        numbers = np.flatnonzero(self.moving)
        amounts = (np.abs(attacked.astype(np.float64) - clean) / self.ranges)[:, numbers]
        order = drawn(amounts.shape, generator).argsort(axis=1)
        amount = np.take_along_axis(amounts, order, axis=1) * self.ranges[numbers]
        steps = self.steps[numbers]
        parts = np.divide(amount, steps, out=np.zeros_like(amount), where=steps > 0)
        whole = np.floor(parts + drawn(parts.shape, generator))
        whole = np.where(np.abs(parts - np.rint(parts)) < STEP_TOLERANCE, np.rint(parts), whole)
        amount = np.where(steps > 0, whole * steps, amount)
        here, most = clean[:, numbers].astype(np.float64), self.ranges[numbers]
        up = np.where(drawn(amount.shape, generator) < 0.5, here + amount <= most + 1e-9, here - amount < -1e-9)
        wanted[:, numbers] = np.where(up, amount, -amount)
        changes = Changes.of(self.categories, attacked, clean)
        return self.composed(clean, wanted, changes.redrawn(self.categories, clean, generator))

    def off(self, clean: Items, generator: torch.Generator) -> Items | None:
        """Move each number with decimals by half a step, which no file holds; None where no feature is one."""
        free = np.asarray([f.kind == NUMERIC and f.step is not None and not f.immutable for f in self.features])
        if not free.any():
            return None
        half = np.where(free, self.steps / 2, 0.0)
        sign = np.where(drawn(clean.shape, generator) < 0.5, 1.0, -1.0)
        here = clean.astype(np.float64)
        sign = np.where(here + half > self.ranges, -1.0, np.where(here - half < 0, 1.0, sign))
        return np.where(free, here + sign * half, clean).astype(np.float32)

    def straight_through(self, points: Tensor) -> Tensor:
        """Snap points [item, feature] exactly; the gradient is the identity's, and zero for immutable features."""
        snapped = torch.from_numpy(self.snap(points.detach().cpu().numpy())).to(points.device)
        mutable = torch.from_numpy(self.mutable).to(points.device, points.dtype)
        straight: Tensor = StraightThrough.apply(points, snapped, mutable)  # type: ignore[no-untyped-call]
        return straight

    def cost(self, points: Items, clean: Items) -> Floats:
        """Return what moving items [item, feature] from their clean ones costs [item], in the features' own costs."""
        costs = np.asarray([f.cost for f in self.features])
        moved = np.abs(points.astype(np.float64) - clean) / self.ranges
        of_numbers = np.asarray((np.where(self.moving, moved, 0.0) * costs).sum(axis=1))
        made = Changes.of(self.categories, points, clean).made
        of_categories = np.asarray([costs[category.columns[0]] for category in self.categories], dtype=np.float64)
        return np.asarray(of_numbers + made @ of_categories, dtype=np.float64)

    def stuck(self, budget: float) -> list[str]:
        """Return the mutable numbers that an L-infinity budget does not let move by one step."""
        limits = self.limits(budget)
        return [
            f.name for f, limit, moves in zip(self.features, limits, self.moving, strict=True) if moves and limit == 0
        ]


class StraightThrough(torch.autograd.Function):
    """Function that returns snapped points as they are, and hands the gradient of mutable features through."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, snapped: Tensor, mutable: Tensor) -> Tensor:
        del points
        ctx.mutable = mutable
        return snapped

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.mutable, None, None
