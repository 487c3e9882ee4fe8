"""Clean items with their labels, content hashes and splits: what every stage of training and evaluation works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from guard.array_room import new_array, taken
from guard.arrays import value_notes, wire_parts
from guard.bundle import InputSpec
from guard.data_file import DataFile
from guard.feature_values import within
from guard.features import only_names
from guard.offline.data.grid import Images
from guard.offline.data.splits import Split, content_hashes, members, split_of


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
        images = taken(self.images, index, self.name)
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


def dataset_of(examples: DataFile, spec: InputSpec) -> Dataset:
    """Return labelled examples in unit space with the hashes of their wire values, converted part by part.

    Values of a table beyond what its features were found in are cut to that, and said.

    Raises:
        DataError: the examples have no labels, or do not fit the model's input.
    """
    labels = examples.labelled()
    unit, hashes = new_array((len(examples), *spec.shape), np.float32, examples.source), []
    for part, wire in wire_parts(examples.images, spec, examples.source, layout=examples.layout):
        hashes.append(content_hashes(wire))
        inside = wire if only_names(spec.features) else within(wire, spec.features)
        unit[part] = np.clip(spec.box.to_unit(inside), 0.0, 1.0)
    notes = (*examples.notes, *value_notes(examples.images, spec, examples.source))
    return Dataset(unit, labels, np.concatenate(hashes), examples.source, notes=notes)


def joined(first: Dataset, second: Dataset) -> Dataset:
    """Return the items of two data sets behind each other, with what the second says of itself."""
    images = new_array((len(first) + len(second), *first.item_shape), np.float32, second.name)
    images[: len(first)], images[len(first) :] = first.images, second.images
    labels = np.concatenate([first.labels, second.labels])
    return replace(second, images=images, labels=labels, hashes=np.concatenate([first.hashes, second.hashes]))
