"""Readings of unit-space items, from the bundle's own programs, and the answers of a closed model beside them.

Rule 1: readings say an item's prediction, a closed model's where there is one: nothing that counts asks the student.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from guard.array_room import parts
from guard.cascade import Cascade, Readings
from guard.items_on_disk import Items
from guard.offline.evidence.batches import batch_items
from guard.offline.model.answering import Answering


@dataclass(frozen=True)
class AnsweredReadings(Readings):
    """The readings of a student's guard, with the predictions of the closed model in place of the student's."""

    answered: NDArray[np.int64] = field(kw_only=True)  # [item]

    @property
    def prediction(self) -> NDArray[np.int64]:
        return self.answered

    @property
    def own_prediction(self) -> NDArray[np.int64]:
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)


def read(cascade: Cascade, unit: Items, batch: int | None = None, *, answering: Answering | None = None) -> Readings:
    """Return the readings of unit-space images [item, ...], every program run on every item, in batches.

    Predictions are those of a closed model, where one is `answering`.
    """
    batch = batch or batch_items(unit.shape[1:])
    box = cascade.spec.box
    found = [cascade.read(box.from_unit(some), complete=True) for some in batches(unit, batch)]
    if not found:
        found = [cascade.read(box.from_unit(unit[:0]), complete=True)]
    values = {f.name: np.concatenate([getattr(p, f.name) for p in found]) for f in fields(Readings)}
    return Readings(**values) if answering is None else AnsweredReadings(**values, answered=answering.predict(unit[:]))


def batches(unit: Items, batch: int) -> Iterator[NDArray[np.float32]]:
    """Yield items in batches; of those that lie on disk several whole batches are read at once, side by side.

    So an item has the same mates wherever the items lie: its last bits may depend on how many there are.
    """
    if isinstance(unit, np.ndarray):
        yield from (unit[start : start + batch] for start in range(0, len(unit), batch))
        return
    for part in parts(-(-len(unit) // batch), batch * unit.item_bytes):  # counted in batches
        held = unit[part.start * batch : part.stop * batch]
        yield from (held[start : start + batch] for start in range(0, len(held), batch))


def some_of(readings: Readings, kept: NDArray[np.bool_]) -> Readings:
    """Return the readings of some of the items."""
    return type(readings)(**{f.name: getattr(readings, f.name)[kept] for f in fields(readings)})


def by_programs(readings: Readings) -> NDArray[np.int64]:
    """Return the classes [item] that the programs themselves name, a student's where the model is closed."""
    return readings.own_prediction if isinstance(readings, AnsweredReadings) else readings.prediction
