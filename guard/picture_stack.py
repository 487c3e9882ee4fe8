"""Pictures of one size in one array, which may lie on disk: each is decoded into its place and held nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.array_room import new_array, parts
from guard.errors import DataError
from guard.pictures import Picture

COLOUR_CHANNELS = 3


class PictureStack:
    """An array [item, height, width, channel] that is filled picture by picture."""

    def __init__(self, items: int, source: str) -> None:
        self.items, self.source = items, source
        self.values: NDArray[Any] | None = None
        self.filled = self.grey = 0
        self.sizes: dict[tuple[int, ...], str] = {}  # (height, width) -> the first picture of that size
        self.changes: Counter[str] = Counter()

    def add(self, picture: Picture, name: str) -> None:
        """Put a picture behind the others; grey beside colour becomes colour."""
        values = picture.values
        self.changes.update(picture.changes)
        self.sizes.setdefault(values.shape[:2], name)
        self.grey += values.shape[2] == 1
        if len(self.sizes) == 1:  # with a second size there will be an error, and nothing to fill
            if self.values is None:
                self.values = new_array((self.items, *values.shape), np.uint8, self.source)
            if values.shape[2] > self.values.shape[3]:
                self.values = self.widened(self.values)
            self.values[self.filled] = values  # a grey one is broadcast
        self.filled += 1

    def widened(self, grey: NDArray[Any]) -> NDArray[Any]:
        """Return grey pictures as colour, in an array of their own."""
        coloured = new_array((*grey.shape[:3], COLOUR_CHANNELS), np.uint8, self.source)
        for part in parts(self.filled, coloured[:1].nbytes):
            coloured[part] = grey[part]
        return coloured

    def finish(self) -> tuple[NDArray[Any], list[str]]:
        """Return all pictures and what was changed. Raises DataError where there are several sizes, or none."""
        check_sizes(self.sizes, self.source)
        if self.values is None:
            raise DataError(f"{self.source} holds no pictures; wanted at least one")
        return self.values, picture_notes(self.changes, self.grey, self.filled)


def check_sizes(sizes: Mapping[tuple[int, ...], str], source: str) -> None:
    """Check that pictures are of one size (height, width), which is given with its first picture. Raises DataError."""
    if len(sizes) > 1:
        shown = ", ".join(f"{name} {size[1]} x {size[0]}" for size, name in sorted(sizes.items())[:3])
        raise DataError(
            f"{source}: pictures have {len(sizes)} different sizes, e.g. {shown} (width x height); they must be of "
            "one size: bring them to the model's"
        )


def picture_notes(changes: Mapping[str, int], grey: int, items: int) -> list[str]:
    """Say how many of the pictures were changed, and how."""
    notes = [f"{count} pictures were {change}" for change, count in sorted(changes.items())]
    if 0 < grey < items:
        notes.append(f"{grey} grey pictures beside {items - grey} in colour were taken as RGB")
    return notes
