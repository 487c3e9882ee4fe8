"""Readings of unit-space items, from the bundle's own programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from guard.array_room import parts
from guard.cascade import Cascade, Readings
from guard.items_on_disk import Items
from guard.offline.evidence.batches import batch_items


def read(cascade: Cascade, unit: Items, batch: int | None = None) -> Readings:
    """Return the readings of unit-space images [item, ...], every program run on every item, in batches."""
    batch = batch or batch_items(unit.shape[1:])
    box, starts = cascade.spec.box, range(0, len(unit), batch)
    parts = [cascade.read(box.from_unit(some), complete=True) for some in batches(unit, starts, batch)]
    if not parts:
        return cascade.read(box.from_unit(unit[:0]), complete=True)
    return Readings(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Readings)))


def batches(unit: Items, starts: Sequence[int], batch: int) -> Iterator[NDArray[np.float32]]:
    """Yield items in batches; of those that lie on disk several batches are read at once, side by side."""
    if isinstance(unit, np.ndarray):
        yield from (unit[start : start + batch] for start in starts)
        return
    for part in parts(len(unit), unit.item_bytes):
        held = unit[slice(part.start, part.stop)]
        yield from (held[start : start + batch] for start in range(0, len(held), batch))


def some_of(readings: Readings, kept: NDArray[np.bool_]) -> Readings:
    """Return the readings of some of the items."""
    return Readings(*(getattr(readings, f.name)[kept] for f in fields(Readings)))
