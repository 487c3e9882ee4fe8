"""Readings of unit-space items, from the bundle's own programs."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from guard.cascade import Cascade, Readings
from guard.offline.evidence.batches import batch_items


def read(cascade: Cascade, unit: NDArray[np.float32], batch: int | None = None) -> Readings:
    """Return the readings of unit-space images [item, ...], every program run on every item, in batches."""
    wire = cascade.spec.box.from_unit(unit)
    batch = batch or batch_items(unit.shape[1:])
    parts = [cascade.read(wire[i : i + batch], complete=True) for i in range(0, len(wire), batch)]
    if not parts:
        return cascade.read(wire[:0], complete=True)
    return Readings(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Readings)))


def some_of(readings: Readings, kept: NDArray[np.bool_]) -> Readings:
    """Return the readings of some of the items."""
    return Readings(*(getattr(readings, f.name)[kept] for f in fields(Readings)))
