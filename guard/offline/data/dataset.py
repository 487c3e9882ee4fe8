"""Clean items with their labels, content hashes and splits: what every stage of training and evaluation works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from guard.offline.data.grid import Images
from guard.offline.data.splits import Split, members, split_of


@dataclass(frozen=True, eq=False)
class Dataset:
    """Clean items in unit space; a part of them is a Dataset again."""

    images: Images
    labels: NDArray[np.int64]  # [item] true class
    hashes: NDArray[np.str_]  # [item] of the wire values
    name: str = "items"  # where the items come from, for display
    splits: Mapping[str, Split] = field(default_factory=dict, repr=False)  # of each hash; empty where there are none
    notes: tuple[str, ...] = field(default=(), repr=False)  # what was left out, changed or found when it was read

    def __len__(self) -> int:
        return len(self.images)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one item, without the item axis."""
        return tuple(self.images.shape[1:])

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Dataset:
        """Return some of the items, in the order of the index."""
        return replace(self, images=self.images[index], labels=self.labels[index], hashes=self.hashes[index])

    def places(self, split: Split) -> NDArray[np.int64]:
        """Return the indices of a split's items, in the order of their hashes, which is independent of their scores."""
        chosen = np.flatnonzero(members(self.hashes, self.splits, split))
        return np.asarray(chosen[np.argsort(self.hashes[chosen], kind="stable")], dtype=np.int64)

    def part(self, split: Split) -> Dataset:
        """Return the items of one split, in the order of their hashes. Raises DataError for an item in no split."""
        return self.take(self.places(split))

    @property
    def groups(self) -> NDArray[np.str_]:
        """Split of each item [item], as a word; all the same where there are no splits.

        Raises DataError for an item that is in no split, where there are splits.
        """
        if not self.splits:
            return np.full(len(self), "")
        return np.asarray([split_of(one, self.splits).value for one in self.hashes.tolist()], dtype=np.str_)
