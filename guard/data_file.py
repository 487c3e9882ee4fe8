"""Inputs and labels as a file holds them, and the checks that every kind of file goes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from guard.array_room import parts
from guard.errors import DataError
from guard.items_on_disk import Items, ItemsOnDisk

MAX_NAMED_CLASSES = 12  # in a message
Reading: TypeAlias = Callable[[int, int], None]  # is told how many pictures are read, and how many there are


@dataclass(frozen=True)
class DataFile:
    """Inputs in the form in which their file holds them, their labels, and what was seen on the way."""

    images: Items  # uint8 or float32 [item, ...]: all but [item, feature] in `layout`
    labels: NDArray[np.int64] | None  # [item]
    source: str
    layout: str | None = None  # order of its axes where file or user say it; None: the model's input must
    classes: tuple[str, ...] = ()  # names by class number; none where numbers are all there is
    class_noun: str = "class folders"  # what the names are names of
    features: tuple[str, ...] = ()  # names of a table's features, in their order
    words: tuple[tuple[str, ...], ...] = ()  # of each feature, the words whose places are its values; () for numbers
    empty: tuple[str, ...] = ()  # class folders without a picture, which are no classes
    notes: tuple[str, ...] = ()  # what a reader should know: left out, scaled, turned
    labels_wanted: str = "an array `labels` [item] of class numbers"  # where they would be found

    def __len__(self) -> int:
        return len(self.images)

    def labelled(self) -> NDArray[np.int64]:
        """Return the labels [item]. Raises DataError when the file has none."""
        if self.labels is None:
            raise DataError(f"{self.source} has no labels; {self.labels_wanted} is needed here")
        return self.labels


def check(examples: DataFile) -> DataFile:
    """Return examples as they are. Raises DataError where they are empty, not finite, or labelled otherwise."""
    images, labels = examples.images, examples.labels
    if images.size == 0:
        raise DataError(f"{examples.source} holds no items: its inputs have shape {list(images.shape)}")
    # Of what stays on disk each part is checked when it is first read.
    if not isinstance(images, ItemsOnDisk) and (bad := first_not_finite(images)) is not None:
        raise DataError(f"{examples.source}: item {bad} holds NaN or infinity; every value must be finite")
    if labels is not None:
        if labels.ndim != 1 or len(labels) != len(images):
            raise DataError(f"{examples.source}: {len(images)} inputs but labels of shape {list(labels.shape)}")
        if (labels < 0).any():
            raise DataError(
                f"{examples.source}: label {int(labels.min())} is negative; labels are class numbers from 0"
            )
    return examples


def first_not_finite(images: NDArray[Any]) -> int | None:
    """Return the first item that holds NaN or infinity, or None."""
    if images.dtype.kind != "f":
        return None
    for part in parts(len(images), images[:1].nbytes):
        finite = np.isfinite(images[part].reshape(len(images[part]), -1)).all(axis=1)
        if not finite.all():
            return int(part.start) + int(np.argmin(finite))
    return None


def class_numbers(labels: NDArray[Any], source: str, classes: Sequence[str] = ()) -> NDArray[np.int64]:
    """Return labels as class numbers [item]; a column [item, 1] is taken for one.

    Names are found among those of `classes`, where there are any. Raises DataError.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "US" and labels.ndim == 1 and classes:
        return numbers_of_names(labels, source, classes)
    if labels.dtype.kind == "b" and labels.ndim == 1:
        return labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise DataError(f"{source}: labels are {labels.dtype}; wanted whole class numbers{remedy(labels)}")
    if labels.ndim == 2 and one_hot(labels):
        raise DataError(
            f"{source}: labels of shape {list(labels.shape)} are one-hot; wanted class numbers [item], "
            "as labels.argmax(axis=1) gives them"
        )
    if labels.dtype.kind == "u" and labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{source}: label {int(labels.max())} is no class number; wanted numbers from 0")
    return labels.astype(np.int64)


def numbers_of_names(labels: NDArray[Any], source: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each item's name among those of the classes. Raises DataError for a name that is none."""
    names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in labels.tolist()]
    places = {name: number for number, name in enumerate(classes)}
    for item, name in enumerate(names):
        if name not in places:
            raise DataError(
                f"{source}: item {item} has label {name!r}, which is no class; wanted one of those known, "
                f"{', '.join(classes[:MAX_NAMED_CLASSES])}{', …' if classes[MAX_NAMED_CLASSES:] else ''}, or numbers "
                "in their order"
            )
    return np.asarray([places[name] for name in names], dtype=np.int64)


def remedy(labels: NDArray[Any]) -> str:
    """Say how labels of another kind become class numbers; nothing where they do not."""
    if labels.dtype.kind == "f":
        if labels.ndim == 2 and one_hot(labels):
            return ": these are one-hot, labels.argmax(axis=1) gives them"
        broken = labels[~(np.isfinite(labels) & (labels == np.rint(labels)))]
        return f", and {broken[0]:g} is none" if broken.size else ": all are whole, write labels.astype(int)"
    if labels.dtype.kind in "US":
        seen = ", ".join(sorted({str(one) for one in labels.ravel()[:1000].tolist()})[:3])
        return f" in the order of the model's classes, not names ({seen}), since the model says no names of its own"
    return ""


def one_hot(labels: NDArray[Any]) -> bool:
    return labels.shape[1] > 1 and bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all())
