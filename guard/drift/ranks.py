"""Smoothed ranks: where each item of a stream stands among the calibration items and all of the stream before it.

Rule 1: an item is ranked among itself, the calibration items and every earlier item; never among later ones.
Rule 2: memory is one count a bin, however long the stream is.

How it works. A statistic is cut into bins that were fixed on other items; what is kept is how many items fell into
each. The p-value of an item is the share of all items so far, itself counted, that lie in higher bins; of those in its
own bin a random part. Where the items are exchangeable, that is exactly uniform and independent of all p-values before
it, whatever the bins are (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, theorem 8.1).

A p-value against the calibration items alone is uniform only on average over such sets: a set of 1,000 is off by about
1 % of all items somewhere, and a long stream finds that.

Example. Bins 0, 1, 2 hold 5, 3 and 1 items. The next item falls into bin 1: one item is higher, 4 of 10 are in its bin
(itself counted), so that with the random number 0.5 its p-value is (1 + 0.5 * 4) / 10 = 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.fusion import Floats

Bins = NDArray[np.int64]


@dataclass(eq=False)
class StreamRanks:
    """The counts of several statistics' bins, which rank the items of a stream as they come."""

    counts: NDArray[np.int64]  # [statistic, bin], of the calibration items and of the stream so far

    def __post_init__(self) -> None:
        self.first_of_row = np.arange(len(self.counts))[:, None] * self.counts.shape[1]  # [statistic, 1]

    def p_values(self, bins: Bins, random: Floats) -> Floats:
        """The p-values [statistic, item] of the stream's next items; both arguments [statistic, item].

        `random` are uniform numbers in [0, 1); a high bin has a small p-value.
        """
        items = bins.shape[1]
        places = bins + self.first_of_row
        higher = self.counts.sum(axis=1, keepdims=True) - self.counts.cumsum(axis=1)
        above, alike = higher.ravel()[places], self.counts.ravel()[places]
        total = self.counts.sum(axis=1, keepdims=True) + np.arange(1, items + 1)
        earlier = np.tri(items, k=-1, dtype=np.bool_)  # [item, earlier item]
        own, others = bins[:, :, None], bins[:, None, :]
        above = above + ((others > own) & earlier).sum(axis=2)
        alike = alike + ((others == own) & earlier).sum(axis=2)
        np.add.at(self.counts.ravel(), places.ravel(), 1)
        found: Floats = (above + random * (alike + 1)) / total
        return found
