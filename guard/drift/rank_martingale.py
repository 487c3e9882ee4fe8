"""The conformal test martingale: bets that p-values of a stream are not uniform.

How it works. A strategy watches one event, such as p < 0.02 or p < 0.1 or p > 0.9, whose chance is known where p-values
are uniform. It estimates the chance from what it has seen and bets on the next block with the odds of the two. With 10
strategies that hit both tails and the middle, at every age of `Wealth`, it notices one attacked item in a hundred as
well as a shift of all.

Example. The event p < 0.1 has been seen 30 times among 100 items. Its estimated chance is (30 + 1) / (100 + 10) = 0.28:
an item with p = 0.05 multiplies the wealth by 0.28 / 0.1 = 2.8, one with p = 0.5 by 0.72 / 0.9 = 0.8. Were p uniform,
that would be 0.1 * 2.8 + 0.9 * 0.8 = 1 on average.

Source: Vovk, Nouretdinov, Gammerman 2003, Testing exchangeability on-line; the strategies are Laplace's rule for each
event, their restarts after Vovk et al. 2021, arXiv:2102.10439. Their jumpers are left out: they lose without end on a
stream that does not change.
"""

from __future__ import annotations

import numpy as np

from guard.drift.wealth import Wealth
from guard.fusion import Floats

LOW_TAILS = (0.001, 0.005, 0.02, 0.1, 0.3)  # events p < c and p >= 1 - c
BOTH_TAILS = (0.005, 0.1, 0.3)  # events p < c or p >= 1 - c
CUTS = np.asarray([*LOW_TAILS, *(1 - c for c in reversed(LOW_TAILS))])
CHANCES = np.asarray([*CUTS, *(2 * c for c in BOTH_TAILS)])  # [event] where p-values are uniform
PRIOR = 1 / np.minimum(CHANCES, 1 - CHANCES)  # [event] items that the first estimate weighs: the rarer side once


def events(p_values: Floats) -> Floats:
    """Count each event [stream, event] among p-values [stream, item]."""
    below = (p_values[:, :, None] < CUTS).sum(axis=1)  # [stream, cut]
    low = [LOW_TAILS.index(c) for c in BOTH_TAILS]
    outer = below[:, low] + p_values.shape[1] - below[:, [len(CUTS) - 1 - place for place in low]]
    return np.concatenate([below, outer], axis=1).astype(np.float64)


class RankMartingale:
    """A martingale for each of several streams of p-values, fed a block at a time."""

    def __init__(self, streams: int) -> None:
        self.wealth = Wealth(streams, len(CHANCES))
        self.seen = np.zeros((streams, 1, len(CHANCES)))  # [stream, slot, event] since the slot began
        self.items = np.zeros(1)  # [slot] since it began

    @property
    def log_wealth(self) -> Floats:
        """The natural logarithm of each stream's wealth."""
        return self.wealth.log_total

    def see(self, p_values: Floats) -> None:
        """Bet on a block of p-values [stream, item], by what came before it."""
        items, found = p_values.shape[1], events(p_values)[:, None, :]
        chance = (self.seen + PRIOR * CHANCES) / (self.items[:, None] + PRIOR)
        won = found * np.log(chance / CHANCES) + (items - found) * np.log((1 - chance) / (1 - CHANCES))
        self.wealth.grow(np.exp(won))
        self.seen += found
        self.items += items
        slot = self.wealth.restart()
        if (more := self.wealth.slots - len(self.items)) > 0:
            self.seen = np.pad(self.seen, ((0, 0), (0, more), (0, 0)))
            self.items = np.pad(self.items, (0, more))
        self.seen[:, slot], self.items[slot] = 0.0, 0.0
