"""The kernel two-sample test by betting: whether the latest items and earlier ones come from one distribution.

It sees what no single statistic shows: how several detectors' scores go together.

Rule 1: each item is used once: in a pair of an earlier and a later item, or not at all.
Rule 2: a pair is bet on by what earlier pairs taught. Where all items are exchangeable, which of the two came later is
a fair coin, so that no bet on it can be expected to win: the wealth is a martingale, whatever the kernel.

How it works. A pool holds calibration items that nothing has looked at yet. Of the stream's items every second is
paired with one drawn from the pool, and the item before it takes the free place there. The witness function of the
maximum mean discrepancy, <mean of later - mean of earlier, features(x)>, is learned from past pairs with weights that
fade, and its difference within a pair is what is bet on. Random Fourier features make a Gaussian kernel's cost linear.

Example: the witness has the value 0.8 for the later item and 0.2 for the earlier one, and such differences have been
0.3 large. tanh(0.6 / 0.3) = 0.96; a strategy that stakes 0.4 multiplies its wealth by 1.39, and by 0.61 had the two
items changed places.

Source: Shekhar and Ramdas 2023, arXiv:2112.09162; Rahimi and Recht 2007 for the features. The pool that refills itself
is ours: theirs takes two streams.
"""

from __future__ import annotations

import numpy as np

from guard.drift.wealth import Wealth
from guard.fusion import Floats

KERNEL_VALUES = 64
STAKE_SHARES = np.asarray([0.02, 0.05, 0.1, 0.2, 0.4])
FADE_PAIRS = np.asarray([200.0, 4000.0])  # after so many pairs a witness has forgotten 63 % of what it knew


class KernelMartingale:
    """A martingale over pairs of an earlier and a later item, fed a block at a time."""

    def __init__(self, pool: Floats, generator: np.random.Generator) -> None:
        """Begin with a pool of unseen calibration items [item, number], numbers on a scale of about 1."""
        numbers = pool.shape[1]
        self.generator = generator
        self.pool = pool.copy()
        self.directions = generator.standard_normal((numbers, KERNEL_VALUES)) / np.sqrt(numbers)
        self.phases = generator.uniform(0, 2 * np.pi, KERNEL_VALUES)
        self.witness = np.zeros((len(FADE_PAIRS), KERNEL_VALUES))  # [fade, feature] later minus earlier
        self.spread = np.ones(len(FADE_PAIRS))  # [fade] mean square of the witness' differences within a pair
        self.wealth = Wealth(1, len(FADE_PAIRS) * len(STAKE_SHARES))

    @property
    def log_wealth(self) -> float:
        """The natural logarithm of the wealth."""
        return float(self.wealth.log_total[0])

    def see(self, block: Floats) -> None:
        """Bet on a block of items [item, number]; where the pool has fewer than half as many, on as many pairs."""
        pairs = min(len(block) // 2, len(self.pool))
        places = self.generator.permutation(len(self.pool))[:pairs]
        earlier, later = self.pool[places], block[1 : 2 * pairs : 2]
        self.pool[places] = block[: 2 * pairs : 2]
        apart = self.features(later) - self.features(earlier)  # [pair, feature]
        differences = apart @ self.witness.T  # [pair, fade]
        won = np.tanh(differences / np.sqrt(self.spread))
        factors = (1 + won[:, :, None] * STAKE_SHARES).prod(axis=0).ravel()
        self.wealth.grow(np.broadcast_to(factors, self.wealth.shares.shape))
        self.wealth.restart()
        kept = np.exp(-len(later) / FADE_PAIRS)
        self.witness = kept[:, None] * self.witness + (1 - kept)[:, None] * apart.mean(axis=0)
        square = ((apart @ self.witness.T) ** 2).mean(axis=0)
        self.spread = np.maximum(kept * self.spread + (1 - kept) * square, 1e-12)

    def features(self, items: Floats) -> Floats:
        """The random Fourier features [item, feature] of items [item, number]."""
        found: Floats = np.sqrt(2 / KERNEL_VALUES) * np.cos(items @ self.directions + self.phases)
        return found
