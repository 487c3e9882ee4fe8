"""Columns of pictures and of nested lists that stay in their Arrow or Parquet files where memory is too small for them.

Rule 1: files are read by row groups, of which the last one read is held. A column with a group that is large itself
does not stay on disk: its items are copied into an unnamed file, as those of other kinds are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.array_room import fits_memory
from guard.arrow_values import nested, picture_bytes
from guard.items_on_disk import ItemsOnDisk, Places
from guard.picture_files import StoredPictures
from guard.pictures import Picture, PictureHead, decode_picture, head_in

MAX_GROUP_BYTES = 2**28  # of one column


@dataclass(eq=False)
class RowGroups:
    """The row groups of a table's files, one behind the other."""

    source: str
    files: tuple[Path, ...]
    ends: NDArray[np.int64]  # [group] the row behind its last
    load: Callable[[int, str], Any]  # (group, column) -> its values, as a pyarrow.Array
    size_bytes: Callable[[str], int]  # of a column's largest group
    lock: threading.Lock = field(default_factory=threading.Lock)
    held: tuple[int, str, Any] | None = None  # group, column and values that were read last

    @property
    def rows(self) -> int:
        """Number of rows of all groups."""
        return int(self.ends[-1])

    def column(self, group: int, name: str) -> Any:
        """Return a group's column, without reading it where it was read last. Raises DataError for damage."""
        with self.lock:
            if self.held is None or self.held[:2] != (group, name):
                self.held = None  # its memory is free before the next is read
                self.held = (group, name, self.load(group, name))
            return self.held[2]

    def cells(self, name: str, places: Places) -> Iterator[tuple[int, int, Any]]:
        """Yield for each of the places which it is, its row from 1, and its cell in a column of length 1.

        They come group by group.
        """
        groups = np.searchsorted(self.ends, places, side="right")
        for group in np.unique(groups).tolist():
            start = 0 if group == 0 else int(self.ends[group - 1])
            column = self.column(group, name)
            for which in np.flatnonzero(groups == group).tolist():
                yield which, int(places[which]) + 1, column.slice(int(places[which]) - start, 1)


def pictures_in_rows(groups: RowGroups, name: str) -> ItemsOnDisk | None:
    """Return a column of picture files that stays on disk; None where it need not, or cannot.

    Raises:
        DataError: the head of a picture cannot be read, or they are of several sizes.
    """

    def contents(places: Places) -> Iterator[tuple[int, str, bytes]]:
        for which, row, cell in groups.cells(name, places):
            (content,) = picture_bytes(cell, groups.source, name, row)
            yield which, f"row {row}, column {name!r}", content

    def decoded(places: Places) -> Iterator[tuple[int, Picture]]:
        for which, place, content in contents(places):
            yield which, decode_picture(content, f"{groups.source}: {place}")

    def heads() -> Iterator[tuple[str, PictureHead]]:
        for _, place, content in contents(np.arange(groups.rows)):
            yield place, head_in(content, f"{groups.source}: {place}")

    if groups.size_bytes(name) > MAX_GROUP_BYTES:
        return None
    _, first = next(decoded(np.zeros(1, np.int64)))
    if fits_memory((groups.rows, *first.values.shape)):
        return None
    return StoredPictures(groups.source, groups.rows, groups.files, heads, decoded, is_swept=True).items()


def arrays_in_rows(groups: RowGroups, name: str) -> ItemsOnDisk | None:
    """Return a column of nested lists that stays on disk; None where it need not, or cannot.

    Raises:
        DataError: the first row holds no array.
    """
    if groups.size_bytes(name) > MAX_GROUP_BYTES:
        return None
    first = nested(groups.column(0, name).slice(0, 1), groups.source, name, 1, None)
    if fits_memory((groups.rows, *first.shape[1:])):
        return None

    def read(places: Places) -> NDArray[Any]:
        values = np.empty((len(places), *first.shape[1:]), first.dtype)
        for which, row, cell in groups.cells(name, places):
            values[which] = nested(cell, groups.source, name, row, first.shape[1:])[0]
        return values

    shape = (groups.rows, *first.shape[1:])
    return ItemsOnDisk(shape, first.dtype, read, groups.source, groups.files, is_swept=True)
