"""Clean items with their labels, content hashes and splits: what every stage of training and evaluation works on.

Rule 1: items that do not fit into memory stay in their files: a part of them is read by its `images[:]`, no sooner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.array_room import new_array, parts
from guard.arrays import value_notes, wire_parts
from guard.data_file import DataFile, Reading
from guard.feature_values import within
from guard.features import only_names
from guard.items_on_disk import ItemsOnDisk, behind, taken_from
from guard.manifest import InputSpec
from guard.offline.data.first_reading import Filled, first_reading
from guard.offline.data.grid import MAX_GRID_STEPS, Images, grid_of, snap, wire_rounding
from guard.offline.data.splits import Split, content_hashes, members, split_of

MIN_OWN_SHARE = 0.9  # of the items, that the effective sample size may be without counting in their place


@dataclass(frozen=True, eq=False)
class Dataset:
    """Clean items in unit space; a part of them is a Dataset again."""

    images: Images | ItemsOnDisk
    labels: NDArray[np.int64]  # [item] true class
    hashes: NDArray[np.str_]  # [item] of the wire values
    name: str = "items"  # where the items come from, for display
    splits: Mapping[str, Split] = field(default_factory=dict, repr=False)  # of each hash; empty where there are none
    notes: tuple[str, ...] = field(default=(), repr=False)  # what was left out, changed or found when it was read
    filled: Filled | None = field(default=None, repr=False)  # by all items that lie on disk

    def __len__(self) -> int:
        return len(self.images)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one item, without the item axis."""
        return tuple(self.images.shape[1:])

    @property
    def is_on_disk(self) -> bool:
        """Whether the items do not fit into memory, and are read when they are needed."""
        return isinstance(self.images, ItemsOnDisk)

    def in_memory(self) -> Dataset:
        """Return the same items, read."""
        return replace(self, images=self.images[:])

    @property
    def distinct(self) -> int:
        """Number of different items."""
        return len(np.unique(self.hashes))

    @property
    def effective(self) -> int:
        """The effective sample size, of items whose copies share one risk; few copies take nothing off.

        For example 10 copies of each of 35 rows count as 35 items; 30 copies of one beside 100 others as 16.
        """
        if not len(self):
            return 0
        _, copies = np.unique(self.hashes, return_counts=True)
        found = len(self) ** 2 / float((copies.astype(np.float64) ** 2).sum())
        return len(self) if found >= MIN_OWN_SHARE * len(self) else int(found + 1e-9)

    def values(self) -> Filled:
        """Return the values that the items fill; where they lie on disk, those of all that were read at first."""
        if self.filled is not None:
            return self.filled
        return Filled(*self.ends(), grid_of(self.images[:]))

    def ends(self) -> tuple[float, float]:
        """Return the least and the greatest of these values."""
        if self.filled is not None:
            return self.filled.low, self.filled.high
        return float(self.images[:].min()), float(self.images[:].max())

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Dataset:
        """Return some of the items, in the order of the index."""
        images = taken_from(self.images, index, self.name)
        return replace(self, images=images, labels=self.labels[index], hashes=self.hashes[index])

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


def dataset_of(
    examples: DataFile, spec: InputSpec, *, kept: Path | None = None, progress: Reading | None = None
) -> Dataset:
    """Return labelled examples in unit space with the hashes of their wire values, converted part by part.

    What is found of items that stay on disk is kept in the folder `kept`. Values of a table beyond what its features
    were found in are cut to that, and said.

    Raises:
        DataError: the examples have no labels, or do not fit the model's input.
    """
    labels = examples.labelled()
    if isinstance(examples.images, ItemsOnDisk):
        found = first_reading(examples, spec, kept, progress)
        notes = (*examples.notes, *found.notes, reading_note(len(labels), found.read_items))
        return Dataset(found.images, labels, found.hashes, examples.source, notes=notes, filled=found.filled)
    unit, hashes = new_array((len(examples), *spec.shape), np.float32, examples.source), []
    for part, wire in wire_parts(examples.images, spec, examples.source, layout=examples.layout):
        hashes.append(content_hashes(wire))
        inside = wire if only_names(spec.features) else within(wire, spec.features)
        unit[part] = np.clip(spec.box.to_unit(inside), 0.0, 1.0)
    rounding = wire_rounding(spec.box) if only_names(spec.features) else 0.0
    if rounding and (grid := grid_of(unit, rounding)):
        for part in parts(len(unit), unit[:1].nbytes):
            unit[part] = snap(unit[part], grid)
    notes = (*examples.notes, *value_notes(examples.images, spec, examples.source))
    return Dataset(unit, labels, np.concatenate(hashes), examples.source, notes=notes)


def reading_note(items: int, read: int) -> str:
    known = f"; {items - read:,} were known from an earlier reading" if read < items else ""
    return f"{items:,} items do not fit into memory as floats and stay in their files{known}"


def joined(first: Dataset, second: Dataset) -> Dataset:
    """Return the items of two data sets behind each other, with what the second says of itself."""
    labels, hashes = (np.concatenate([getattr(one, name) for one in (first, second)]) for name in ("labels", "hashes"))
    if isinstance(first.images, ItemsOnDisk) or isinstance(second.images, ItemsOnDisk):
        images: Images | ItemsOnDisk = behind(first.images, second.images, second.name)
        filled: Filled | None = both(first.values(), second.values())
    else:
        images, filled = new_array((len(first) + len(second), *first.item_shape), np.float32, second.name), None
        images[: len(first)], images[len(first) :] = first.images, second.images
    return replace(second, images=images, labels=labels, hashes=hashes, filled=filled)


def both(first: Filled, second: Filled) -> Filled:
    """Return the values that two sets of items fill together, on the coarsest grid that holds both grids."""
    steps = math.lcm(first.grid or 0, second.grid or 0)  # 0 where one has none
    grid = steps if 0 < steps <= MAX_GRID_STEPS else None
    return Filled(min(first.low, second.low), max(first.high, second.high), grid)
