"""The one reading of all items that do not fit into memory: their hashes, what values they fill, what was changed.

How it works. Parts of the items are read, hashed and let go again, on as many threads as there are CPUs. Of pixels, the
levels that each item uses are noted beside its hash, so that range and grid of any items follow from 256 bits a channel
and item; of other values range and grid are followed over all of them.

Rule 1: what was found of an item is used again while its file has the same path, size and time; of pixels each item by
itself, and also where an earlier reading was interrupted.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.array_room import FLOAT32_BYTES, parts
from guard.arrays import are_pixels, check_shape, wire_values
from guard.data_file import DataFile, Reading, first_not_finite
from guard.errors import DataError
from guard.items_on_disk import ItemsOnDisk, Places
from guard.layout import channels_in_front
from guard.manifest import InputSpec
from guard.offline.data.grid import GridSearch, Images, grid_of, snap, wire_rounding
from guard.offline.data.splits import content_hashes
from guard.offline.work.files import read_arrays, write_arrays
from guard.offline.work.store import cache_key
from guard.picture_files import TAKEN_AS_RGB
from guard.picture_stack import picture_notes
from guard.read_ahead import read_ahead
from guard.value_span import ValueSpan, check_box, check_bytes, check_values_fit

PIXEL_STEPS = 256  # of a pixel
SAVED_EVERY_S = 20.0
Found = dict[str, NDArray[Any]]  # by name, each [item, ...]


@dataclass(frozen=True)
class Filled:
    """The values that items fill, in unit space."""

    low: float
    high: float
    grid: int | None  # steps of the grid that all lie on


@dataclass(frozen=True, eq=False)
class FirstReading:
    """Items in unit space that stay on disk, and what the reading of all found."""

    images: ItemsOnDisk
    hashes: NDArray[np.str_]  # [item] of the wire values
    filled: Filled
    notes: tuple[str, ...]  # what was changed
    read_items: int  # that had not been read before


def first_reading(
    examples: DataFile, spec: InputSpec, folder: Path | None, progress: Reading | None = None
) -> FirstReading:
    """Read all items that stay on disk once; what is found is kept in `folder` and found there again.

    Raises:
        DataError: the items do not fit the model's input, or one cannot be read.
    """
    items = examples.images
    if not isinstance(items, ItemsOnDisk):
        raise TypeError("items in memory need no first reading")

    def front(some: NDArray[Any]) -> NDArray[Any]:
        return channels_in_front(some, examples.layout, spec.shape, examples.source)

    sizes = front(np.empty((0, *items.shape[1:]), items.dtype)).shape[1:]
    check_shape(sizes, spec, examples.source)
    reader = ItemReader(items.mapped(sizes, items.dtype, front), spec, examples.source)
    key = cache_key((spec.shape, spec.box, examples.layout, items.shape[1:], str(items.dtype)), (__name__,))
    file = None if folder is None else folder / f"items-{key[:24]}.npz"
    return reader.pixels(file, progress) if are_pixels(items, spec) else reader.values(file, progress)


@dataclass(frozen=True, eq=False)
class ItemReader:
    """A reader of items with the values that a file holds, channels first, by the model's input."""

    items: ItemsOnDisk
    spec: InputSpec
    source: str

    def unit(self, grid: int | None) -> ItemsOnDisk:
        """Return the items in unit space, read when they are asked for; a wire that rounds takes none off its grid."""
        snapped = grid if wire_rounding(self.spec.box) else None
        return self.items.mapped(self.spec.shape, np.dtype(np.float32), lambda raw: snap(self.to_unit(raw), snapped))

    def to_unit(self, raw: NDArray[Any]) -> Images:
        return np.clip(self.spec.box.to_unit(self.to_wire(raw)), 0.0, 1.0)

    def to_wire(self, raw: NDArray[Any]) -> NDArray[Any]:
        return wire_values(raw, self.spec, pixels=are_pixels(raw, self.spec))

    def parts(self, places: Places) -> Iterator[Places]:
        """Cut places into parts by the memory that an item takes as float32."""
        yield from (places[part] for part in parts(len(places), FLOAT32_BYTES * self.items.size // len(self.items)))

    def pixels(self, file: Path | None, progress: Reading | None) -> FirstReading:
        """Read all pictures that were not read before."""
        keys = self.items.keys()
        record = Record.opened(keys, self.spec.shape[0], file)
        missing = np.flatnonzero(record.hashes == "")
        try:
            for places, found in self.read(missing, self.pixels_of, progress):
                record.note(places, found, file)
        finally:
            record.save(file)
        changes = Counter(change for noted in record.changes.tolist() if noted for change in noted.split("\n"))
        grey = changes.pop(TAKEN_AS_RGB, 0)
        notes = tuple(picture_notes(changes, grey, len(self.items)))
        filled = self.filled(record.levels)
        return FirstReading(self.unit(filled.grid), record.hashes, filled, notes, len(missing))

    def pixels_of(self, places: Places) -> Found:
        """Return hashes, levels and changes of the pictures at these places."""
        raw = self.items.read(places)
        levels = np.zeros((len(raw), self.spec.shape[0], PIXEL_STEPS), np.bool_)
        for item, picture in enumerate(raw):
            for channel, plane in enumerate(picture):
                levels[item, channel] = np.bincount(plane.reshape(-1), minlength=PIXEL_STEPS) > 0
        changes = ["\n".join(self.items.changes.pop(place, ())) for place in places.tolist()]
        packed = np.packbits(levels.reshape(len(raw), -1), axis=1)
        return {"hashes": content_hashes(self.to_wire(raw)), "levels": packed, "changes": np.asarray(changes)}

    def filled(self, packed: NDArray[np.uint8]) -> Filled:
        """Return the values that pictures fill, from the levels that each of them uses."""
        channels = self.spec.shape[0]
        used = np.unpackbits(np.bitwise_or.reduce(packed, axis=0)).astype(np.bool_).reshape(channels, PIXEL_STEPS)
        check_bytes(int(np.flatnonzero(used.any(axis=0)).max()), len(packed), self.source)
        every = np.broadcast_to(
            np.arange(PIXEL_STEPS, dtype=np.uint8)[:, None, None, None], (PIXEL_STEPS, channels, 1, 1)
        )
        wire = wire_values(every, self.spec, pixels=True)
        unit = np.clip(self.spec.box.to_unit(wire), 0.0, 1.0)[:, :, 0, 0]
        values = unit.T[used]
        return Filled(float(values.min()), float(values.max()), grid_of(values, wire_rounding(self.spec.box)))

    def values(self, file: Path | None, progress: Reading | None) -> FirstReading:
        """Read all items that are no pixels, unless all were read before."""
        keys, kept = self.items.keys(), None if file is None else read_arrays(file)
        if kept is None or not np.array_equal(kept["keys"], keys):
            kept = self.values_anew(progress) | {"keys": keys}
            if file is not None:
                write_arrays(file, kept)
            read = len(keys)
        else:
            read = 0
        low, high, grid = kept["filled"].tolist()
        filled = Filled(low, high, int(grid) or None)
        return FirstReading(self.unit(filled.grid), kept["hashes"], filled, (), read)

    def values_anew(self, progress: Reading | None) -> Found:
        search, lock, spans = GridSearch(wire_rounding(self.spec.box)), threading.Lock(), list[ValueSpan]()

        def values_of(places: Places) -> Found:
            raw = self.items.read(places)
            if (bad := first_not_finite(raw)) is not None:
                raise DataError(f"{self.source}: item {places[bad]} holds NaN or infinity; every value must be finite")
            span = ValueSpan.of(raw)
            check_box(span, self.spec, self.source)
            wire = wire_values(raw, self.spec, pixels=False)
            unit = np.clip(self.spec.box.to_unit(wire), 0.0, 1.0)
            with lock:
                spans.append(span)
                search.see(unit)
            return {"hashes": content_hashes(wire), "ends": np.asarray([unit.min(), unit.max()])}

        every = np.arange(len(self.items))
        found = [one for _, one in self.read(every, values_of, progress)]
        together = spans[0]
        for span in spans[1:]:
            together |= span
        check_values_fit(together, self.spec, self.source)
        ends = np.stack([one["ends"] for one in found])
        filled = np.asarray([ends.min(), ends.max(), search.found() or 0], dtype=np.float64)
        return {"hashes": np.concatenate([one["hashes"] for one in found]), "filled": filled}

    def read(
        self, places: Places, call: Callable[[Places], Found], progress: Reading | None
    ) -> Iterator[tuple[Places, Found]]:
        """Read items part by part on several threads, and say how far it is."""
        done, total = len(self.items) - len(places), len(self.items)
        for part, found in zip(self.parts(places), read_ahead(call, self.parts(places)), strict=True):
            done += len(part)
            if progress is not None:
                progress(done, total)
            yield part, found


@dataclass(eq=False)
class Record:
    """What is known of each picture: its hash, the levels that it uses, and what was changed in it."""

    keys: NDArray[np.str_]  # [item] of file, size and time
    hashes: NDArray[np.str_]  # [item] empty where it has not been read
    levels: NDArray[np.uint8]  # [item, ...] 256 bits a channel
    changes: NDArray[np.str_]  # [item] a line each
    saved: float  # when it was last saved, on the monotonic clock

    @staticmethod
    def opened(keys: NDArray[np.str_], channels: int, file: Path | None) -> Record:
        """Open the record of pictures by their keys, with what a file holds of them."""
        levels = np.zeros((len(keys), channels * PIXEL_STEPS // 8), np.uint8)
        blank = Record(keys, np.zeros(len(keys), "<U64"), levels, np.zeros(len(keys), object), time.monotonic())
        blank.changes[:] = ""
        kept = None if file is None else read_arrays(file, ("keys", "hashes", "levels", "changes"))
        if kept is None:
            return blank
        rows = {key: row for row, key in enumerate(kept["keys"].tolist())}
        places = np.asarray([rows.get(key, -1) for key in keys.tolist()], dtype=np.int64)
        known = places >= 0
        blank.hashes[known], blank.levels[known] = kept["hashes"][places[known]], kept["levels"][places[known]]
        blank.changes[known] = kept["changes"][places[known]]
        return blank

    def note(self, places: Places, found: Found, file: Path | None) -> None:
        """Take down what was found of some pictures; now and then all of it is saved."""
        self.hashes[places], self.levels[places] = found["hashes"], found["levels"]
        self.changes[places] = found["changes"]
        if time.monotonic() - self.saved >= SAVED_EVERY_S:
            self.save(file)

    def save(self, file: Path | None) -> None:
        """Save what is known so far."""
        if file is not None:
            known = self.hashes != ""
            held = {"keys": self.keys, "hashes": self.hashes, "levels": self.levels}
            changes = np.asarray(self.changes[known].tolist(), dtype=np.str_)
            write_arrays(file, {name: values[known] for name, values in held.items()} | {"changes": changes})
            self.saved = time.monotonic()
