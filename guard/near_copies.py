"""The memory of the latest items, which finds near-copies: frames of a video, a still camera, retries.

Rule 1: memory is fixed when it is made; what is oldest is overwritten.
Rule 2: every item is remembered, near-copies too, so that a long video stays one.

How it works. An item's coarse view is its mean in each of at most 8 by 8 fields a channel (64 segments of a series).
A random projection shortens it to 24 numbers that keep distances to about 15 %. An item is a
near-copy where one of the latest 8,192 is no further than 0.02 of the value range a value of the view, as noise of
8/255 is. What is shifted by a pixel or more mostly counts as another item.

Data may fill little of their range: heart beats of 1 mV in a box of 10 mV either way differ by 0.02 of it. So the
distance is at most a tenth of what lies between two clean items, of which calibration takes the median.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Views = NDArray[np.float32]

MEMORY_ITEMS = 8192
PROJECTED_VALUES = 24
GRID_PARTS = 8  # of height and of width
SEGMENT_PARTS = 64  # of a series' time
MAX_COPY_DISTANCE = 0.02  # root mean square over the coarse view, of the value range
MAX_TYPICAL_SHARE = 0.1  # of the distance between two clean items
TYPICAL_PAIRS = 2000  # of clean items, whose distances are compared
CHUNK_ITEMS = 64  # that are compared at once
FAR_DISTANCE = 1e6  # where the memory begins: no item is near it


def coarse_view(unit: NDArray[np.float32]) -> Views:
    """The coarse view [item, value] of items in [0, 1], channels first."""
    view = unit
    for axis in range(2, unit.ndim):
        length = unit.shape[axis]
        count = min(length, SEGMENT_PARTS if unit.ndim == 3 else GRID_PARTS)
        if length % count == 0:  # the usual case, in which numpy is quicker
            view = view.reshape(*view.shape[:axis], count, -1, *view.shape[axis + 1 :]).mean(axis=axis + 1)
            continue
        starts = np.arange(count) * length // count
        shape = [1] * unit.ndim
        shape[axis] = count
        sizes = np.diff([*starts, length]).reshape(shape)
        view = (np.add.reduceat(view, starts, axis=axis) / sizes).astype(np.float32)
    return np.nan_to_num(view.reshape(len(unit), -1)).astype(np.float32, copy=False)


class Items(Protocol):
    """Items [item, ...], in memory or on a disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Nearness:
    """How near the clean items of a calibration are to one another."""

    fresh: NDArray[np.bool_]  # [item] no near-copy of one before
    distance: float  # between two items, the median: root mean square over the coarse view, of the value range

    @staticmethod
    def of(images: Items, to_unit: Callable[[NDArray[Any]], NDArray[np.float32]] | None = None) -> Nearness:
        """Compare items [item, channel, ...] in [0, 1], or wire inputs that `to_unit` maps there."""
        parts = [images[start : start + CHUNK_ITEMS] for start in range(0, len(images), CHUNK_ITEMS)]
        units = (np.asarray(part, dtype=np.float32) if to_unit is None else to_unit(part) for part in parts)
        views = np.concatenate([coarse_view(unit) for unit in units])
        distance = typical_distance(views)
        return Nearness(NearCopies(np.random.default_rng(0), copy_distance(distance)).fresh(views), distance)


def typical_distance(views: Views) -> float:
    """The median distance between two of these coarse views [item, value]."""
    if len(views) < 2:
        return 1.0
    first, second = np.random.default_rng(0).integers(len(views), size=(2, TYPICAL_PAIRS))
    apart = first != second
    return float(np.median(np.sqrt(((views[first[apart]] - views[second[apart]]) ** 2).mean(axis=1))))


def copy_distance(typical: float | None, largest: float = MAX_COPY_DISTANCE, share: float = MAX_TYPICAL_SHARE) -> float:
    """The distance up to which an item is a near-copy, where two items typically have this one (None: not known)."""
    return largest if typical is None else min(largest, share * typical)


class NearCopies:
    """A memory of a fixed number of coarse views of one size."""

    def __init__(self, generator: np.random.Generator, max_distance: float = MAX_COPY_DISTANCE) -> None:
        self.generator = generator
        self.max_distance = max_distance
        self.memory = np.full((MEMORY_ITEMS, PROJECTED_VALUES), FAR_DISTANCE, dtype=np.float32)
        self.lengths = (self.memory**2).sum(axis=1)
        self.next = 0  # the oldest place
        self.projection: NDArray[np.float32] | None = None  # once the views' size is known

    def fresh(self, views: Views) -> NDArray[np.bool_]:
        """Tell which items [item], by their coarse views [item, value], are no near-copy of one before."""
        if self.projection is None:
            directions = self.generator.standard_normal((views.shape[1], PROJECTED_VALUES))
            self.projection = (directions / np.sqrt(PROJECTED_VALUES * views.shape[1])).astype(np.float32)
        short = views @ self.projection
        parts = [self.fresh_chunk(short[start : start + CHUNK_ITEMS]) for start in range(0, len(short), CHUNK_ITEMS)]
        return np.concatenate([np.zeros(0, dtype=np.bool_), *parts])

    def fresh_chunk(self, short: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Tell which items [item], by their projected views, are no near-copy; remember them."""
        items, lengths = np.arange(len(short)), (short**2).sum(axis=1)
        near = lengths[:, None] + self.lengths - 2 * short @ self.memory.T <= self.max_distance**2
        places = (self.next + items) % MEMORY_ITEMS
        near[:, places] &= np.tri(len(short), dtype=np.bool_).T  # what earlier items of the chunk overwrite is gone
        among = lengths[:, None] + lengths - 2 * short @ short.T <= self.max_distance**2
        among &= np.tri(len(short), k=-1, dtype=np.bool_)
        self.memory[places], self.lengths[places] = short, lengths
        self.next = (self.next + len(short)) % MEMORY_ITEMS
        found: NDArray[np.bool_] = ~(near.any(axis=1) | among.any(axis=1))
        return found
