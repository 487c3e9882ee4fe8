"""Categories among a table's features, and changes from one to another: an attack's, or drawn as its noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Items: TypeAlias = NDArray[np.float32]  # [item, feature] in unit space
Floats: TypeAlias = NDArray[np.float64]

TOLERANCE_SHARE = 1e-6  # of a range or a budget: what float32 may add


@dataclass(frozen=True)
class Category:
    """Columns that hold one category: one column of codes, or the several of a one-hot group."""

    columns: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]  # each category's values in these columns, in unit space
    immutable: bool

    def nearest(self, images: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the category [item] that lies nearest to unit-space items; of a group the largest column's."""
        given = images[:, list(self.columns)].astype(np.float64)
        codes = np.asarray(self.values)
        if len(self.columns) > 1:
            return np.asarray(given.argmax(axis=1), dtype=np.int64)
        between = (codes[1:, 0] + codes[:-1, 0]) / 2
        return np.asarray(np.searchsorted(between, given[:, 0]), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Changes:
    """Changes of categories that an attack wants: which category, and how strongly."""

    chosen: NDArray[np.int64]  # [item, category]
    made: NDArray[np.bool_]  # [item, category] another one than the clean item's
    sizes: Floats  # [item, category] how far the attack moved the columns, in unit space

    @staticmethod
    def of(categories: Sequence[Category], points: Items, clean: Items) -> Changes:
        """Read from points which categories they stand for; immutable ones stay."""
        shape = (len(clean), len(categories))
        chosen, made, sizes = np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(shape)
        for place, category in enumerate(categories):
            columns = list(category.columns)
            chosen[:, place] = category.nearest(points)
            made[:, place] = (chosen[:, place] != category.nearest(clean)) & (not category.immutable)
            sizes[:, place] = np.abs(points[:, columns].astype(np.float64) - clean[:, columns]).max(axis=1)
        return Changes(chosen, made, sizes)

    @property
    def count(self) -> Floats:
        """Number of changes [item]."""
        return np.asarray(self.made.sum(axis=1), dtype=np.float64)

    def kept(self, which: NDArray[np.bool_]) -> Changes:
        """Return the changes made where `which`, [item, category] or one for all, says so."""
        return Changes(self.chosen, self.made & which, self.sizes)

    def first(self, limit: Floats) -> Changes:
        """Keep the strongest changes, at most so many an item [item]."""
        order = np.argsort(-np.where(self.made, self.sizes, -1.0), axis=1, kind="stable")
        rank = np.argsort(order, axis=1, kind="stable")
        return self.kept(rank + 1 <= limit[:, None] * (1 + TOLERANCE_SHARE))

    def redrawn(self, categories: Sequence[Category], clean: Items, generator: torch.Generator) -> Changes:
        """Draw as many changes an item, of any mutable categories, each to any other one."""
        mutable = np.asarray([not category.immutable for category in categories], dtype=bool)
        rank = np.where(mutable, drawn(self.made.shape, generator), 2.0).argsort(axis=1).argsort(axis=1)
        return self.drawn_for((rank < self.count[:, None]) & mutable, categories, clean, generator)

    def drawn_for(
        self, made: NDArray[np.bool_], categories: Sequence[Category], clean: Items, generator: torch.Generator
    ) -> Changes:
        """Draw another category for the clean items' one wherever `made` [item, category]; immutable ones stay."""
        made = made & np.asarray([not category.immutable for category in categories], dtype=bool)
        chosen = self.chosen.copy()
        for place, category in enumerate(categories):
            others = max(len(category.values) - 1, 1)
            jump = 1 + np.floor(drawn((len(clean),), generator) * others).astype(np.int64)
            chosen[:, place] = (category.nearest(clean) + jump) % len(category.values)
        return Changes(chosen, made, self.sizes)


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> Floats:
    """Draw uniform numbers from 0 to 1."""
    return np.asarray(torch.rand(shape, generator=generator, dtype=torch.float64).numpy(), dtype=np.float64)
