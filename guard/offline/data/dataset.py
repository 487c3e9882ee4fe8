"""Clean items with their labels and hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.offline.data.splits import Split, members


@dataclass(frozen=True)
class HeldOut:
    """Clean items that nothing was fitted or calibrated on; unit space."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    hashes: NDArray[np.str_]
    name: str


@dataclass(frozen=True)
class Data:
    """Clean items in unit space, split by content hash."""

    images: NDArray[np.float32]  # [item, ...]
    labels: NDArray[np.int64]
    hashes: NDArray[np.str_]  # [item]
    splits: Mapping[str, Split]  # of each hash
    name: str

    def part(self, split: Split) -> NDArray[np.int64]:
        """Indices of a split's items, in the order of their hashes: an order that knows nothing of their scores."""
        chosen = np.flatnonzero(members(self.hashes, self.splits, split))
        return np.asarray(chosen[np.argsort(self.hashes[chosen], kind="stable")], dtype=np.int64)

    def held_out(self) -> HeldOut:
        """The items that only the report sees."""
        test = self.part(Split.TEST)
        return HeldOut(self.images[test], self.labels[test], self.hashes[test], self.name)
