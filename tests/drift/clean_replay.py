"""Replay of many streams at once through the production's own ranks and bets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.drift.monitor import BLOCK_ITEMS
from guard.drift.rank_martingale import RankMartingale
from guard.drift.ranks import Bins, StreamRanks
from guard.fusion import Floats


@dataclass(frozen=True)
class Highest:
    """The highest logarithm of the wealth [look, run] of clean or changed streams up to each look."""

    looks: NDArray[np.int64]
    log_wealth: Floats

    def at(self, promise: float) -> Floats:
        """The number of items [run] at the first look that alarms; infinite where none does."""
        over = self.log_wealth >= -np.log(promise)
        return np.where(over.any(axis=0), self.looks[over.argmax(axis=0)].astype(np.float64), np.inf)


def first_alarms(
    population: Bins,
    *,
    runs: int,
    items: int,
    seed: int,
    calibration_items: int = 0,
    reference: Bins | None = None,
    fixed: bool = False,
) -> Highest:
    """Run martingales over streams of bins; these are drawn from `population`, or are it where there is a reference.

    `fixed` ranks every item among the calibration items (and the few before it in its block) alone.
    """
    generator = np.random.default_rng(seed)
    bins = int(max(population.max(), 0 if reference is None else reference.max())) + 1
    if reference is None:
        drawn = generator.choice(population, (runs, calibration_items))
        counts = np.stack([np.bincount(row, minlength=bins) for row in drawn])
    else:
        counts = np.bincount(reference, minlength=bins)[None].repeat(runs, axis=0)
    ranks, martingale = StreamRanks(counts.copy()), RankMartingale(runs)
    looks = np.arange(BLOCK_ITEMS, items + 1, BLOCK_ITEMS)
    found = np.empty((len(looks), runs))
    for place, end in enumerate(looks):
        if reference is None:
            block = generator.choice(population, (runs, BLOCK_ITEMS))
        else:
            block = population[None, end - BLOCK_ITEMS : end].repeat(runs, axis=0)
        martingale.see(ranks.p_values(block, generator.random(block.shape)))
        if fixed:
            ranks.counts[:] = counts
        found[place] = martingale.log_wealth
    return Highest(looks, found)


def alarm_shares(found: Highest, ends: Sequence[int], promise: float) -> dict[int, float]:
    """The share of runs that have alarmed by each of these numbers of items."""
    first = found.at(promise)
    return {end: float((first <= end).mean()) for end in ends}
