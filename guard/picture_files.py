"""Pictures that stay in their files until they are asked for, where all of them do not fit into memory.

Rule 1: sizes and colours of all are known before any is decoded: their heads are read first.
Rule 2: what was changed in a picture is found when it is decoded, and noted by its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataError
from guard.items_on_disk import ItemsOnDisk, Places
from guard.picture_stack import COLOUR_CHANNELS, check_sizes
from guard.pictures import Picture, PictureHead, picture_head, read_picture
from guard.read_ahead import read_ahead

Progress = Callable[[int, int], None]  # is told how many heads are read, and how many there are
TAKEN_AS_RGB = "taken as RGB"  # of a grey picture beside others in colour


@dataclass(frozen=True, eq=False)
class StoredPictures:
    """Pictures that can be decoded one by one, wherever they are stored."""

    source: str
    count: int
    files: tuple[Path, ...]  # one a picture, or all in each
    heads: Callable[[], Iterator[tuple[str, PictureHead]]]  # name and head of each, in their order
    decoded: Callable[[Places], Iterator[tuple[int, Picture]]]  # of pictures at places: which of the places, and it
    is_swept: bool = False

    def items(self, progress: Progress | None = None) -> ItemsOnDisk:
        """Return the pictures [item, height, width, channel]; grey beside colour will become colour.

        `progress` hears how many heads are read.

        Raises:
            DataError: the head of one cannot be read, or they are of several sizes.
        """
        height, width, channels = self.common_shape(progress)
        changes: dict[int, tuple[str, ...]] = {}

        def read(places: Places) -> NDArray[Any]:
            values = np.empty((len(places), height, width, channels), np.uint8)
            for row, picture in self.decoded(places):
                found = picture.values.shape
                if found[:2] != (height, width) or found[2] > channels:
                    raise DataError(
                        f"{self.source}: picture {int(places[row])} has shape {list(found)}, and had another when "
                        f"reading began; wanted {[height, width, channels]}: leave the files alone, and start again"
                    )
                widened = (TAKEN_AS_RGB,) if found[2] < channels else ()
                if noted := (*picture.changes, *widened):
                    changes[int(places[row])] = noted
                values[row] = picture.values  # a grey one is broadcast
            return values

        shape = (self.count, height, width, channels)
        return ItemsOnDisk(
            shape, np.dtype(np.uint8), read, self.source, self.files, is_swept=self.is_swept, changes=changes
        )

    def common_shape(self, progress: Progress | None) -> tuple[int, int, int]:
        """Return height, width and channels in which all pictures are read. Raises DataError where sizes differ."""
        sizes: dict[tuple[int, ...], str] = {}
        channels, unclear = 1, list[int]()
        for place, (name, head) in enumerate(self.heads()):
            sizes.setdefault(head.size, name)
            if progress is not None:
                progress(place + 1, self.count)
            if head.channels is None:
                unclear.append(place)
            else:
                channels = max(channels, head.channels)
        check_sizes(sizes, self.source)
        if channels < COLOUR_CHANNELS:  # a palette may hold greys alone
            for _, picture in self.decoded(np.asarray(unclear, dtype=np.int64)):
                channels = max(channels, picture.values.shape[2])
        (height, width), *_ = sizes
        return height, width, channels


def pictures_on_disk(files: Sequence[Path], root: Path, progress: Progress | None = None) -> ItemsOnDisk:
    """Open picture files [item, height, width, channel] without decoding them. Raises DataError."""

    def heads() -> Iterator[tuple[str, PictureHead]]:
        for file, head in zip(files, read_ahead(picture_head, files), strict=True):
            yield str(file.relative_to(root)), head

    def decoded(places: Places) -> Iterator[tuple[int, Picture]]:
        yield from ((row, read_picture(files[place])) for row, place in enumerate(places.tolist()))

    return StoredPictures(str(root), len(files), tuple(files), heads, decoded).items(progress)
