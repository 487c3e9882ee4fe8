"""Items that stay in their files: an array [item, ...] of which a part is read when it is asked for.

Rule 1: what is read is what an array of all items would hold, bit for bit; nothing that was read is kept.
Example: `items[:32]` decodes 32 pictures; `items.take(places)` decodes none, and is again items that stay in files.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from guard.array_room import new_array, parts, taken
from guard.container import cpus
from guard.read_ahead import read_ahead

Places: TypeAlias = NDArray[np.int64]
Index: TypeAlias = slice | NDArray[Any]
Changes: TypeAlias = tuple[str, ...]  # of one item: "turned as its EXIF orientation says"


@dataclass(frozen=True, eq=False)
class ItemsOnDisk:
    """An array [item, ...] whose items are read, on as many threads as there are CPUs, when they are asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    # The items at these places of the files, in their order; called on several threads.
    read: Callable[[Places], NDArray[Any]]
    source: str  # for messages
    files: tuple[Path, ...] = ()  # in which the items lie: one an item, or all in each
    is_swept: bool = False  # far places cost a reading of what lies between
    chosen: Places | None = None  # of the items in the files; None: all
    changes: dict[int, Changes] = field(default_factory=dict)  # made to items so far read, by their place in the files

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes, that of items included."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values of all items."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all items once they are read."""
        return self.size * self.dtype.itemsize

    @property
    def item_bytes(self) -> int:
        """Bytes of one item once it is read."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def __getitem__(self, index: Index) -> NDArray[Any]:
        """Read some of the items, or all; an array that is large lies on disk."""
        places = self.places(index)
        values = new_array((len(places), *self.shape[1:]), self.dtype, self.source)
        order = np.argsort(places, kind="stable")
        threads = 1 if self.is_swept else cpus()
        step = max(1, -(-len(places) // threads))
        pieces = [
            order[start:stop]
            for part in parts(len(places), self.item_bytes)
            for start in range(part.start, part.stop, step)
            for stop in [min(start + step, part.stop)]
        ]
        for piece, found in zip(
            pieces, read_ahead(lambda piece: self.read(places[piece]), pieces, threads), strict=True
        ):
            values[piece] = found
        return values

    def take(self, index: Index) -> ItemsOnDisk:
        """Return some of the items, in the order of the index, none of them read."""
        places = self.places(index)
        return replace(self, shape=(len(places), *self.shape[1:]), chosen=places)

    def mapped(
        self, item_shape: tuple[int, ...], dtype: np.dtype[Any], change: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> ItemsOnDisk:
        """Return the items as they will be once each part that is read is changed: its shape and type are given."""
        shape = (len(self), *item_shape)
        return replace(self, shape=shape, dtype=dtype, read=lambda places: change(self.read(places)))

    def places(self, index: Index) -> Places:
        """Return the places in the files that an index means."""
        every = np.arange(len(self), dtype=np.int64) if self.chosen is None else self.chosen
        return every[index]

    def keys(self) -> NDArray[np.str_]:
        """Return a key of each item [item]: path, size and time of its file, and its place where files hold several.

        Of all items of the files, in their order: not of some that were taken.
        """
        stamps = [stamp(file) for file in self.files]
        if len(stamps) != len(self):
            whole = " ".join(stamps)
            stamps = [f"{whole} {place}" for place in range(len(self))]
        return np.asarray(
            [hashlib.blake2b(os.fsencode(one), digest_size=16).hexdigest() for one in stamps], dtype="<U32"
        )


Items: TypeAlias = NDArray[Any] | ItemsOnDisk


def stamp(file: Path) -> str:
    """Return a text that differs once a file is another: its path, size in bytes, and time of its last change."""
    found = file.stat()
    return f"{file.resolve()} {found.st_size} {found.st_mtime_ns}"


def behind(first: Items, second: Items, source: str) -> ItemsOnDisk:
    """Return the items of two arrays of one kind behind each other, none of them read."""
    count = len(first)

    def read(places: Places) -> NDArray[Any]:
        values = np.empty((len(places), *first.shape[1:]), first.dtype)
        for items, own, start in ((first, places < count, 0), (second, places >= count, count)):
            if own.any():
                some = places[own] - start
                values[own] = items.read(items.places(some)) if isinstance(items, ItemsOnDisk) else items[some]
        return values

    swept = any(isinstance(items, ItemsOnDisk) and items.is_swept for items in (first, second))
    return ItemsOnDisk((count + len(second), *first.shape[1:]), first.dtype, read, source, is_swept=swept)


def taken_from(items: Items, index: Index, source: str) -> Items:
    """Return some of the items, as `items[index]` does: those on disk are not read, a copy that is large lies there."""
    return items.take(index) if isinstance(items, ItemsOnDisk) else taken(items, index, source)
