"""The rows of items judged with a closed model's own answer, as a guard does that forwards before its verdict.

Rule 1: an item counts as attacked only if the model's own answer is wrong, as everywhere. So an attack that goes
through the student mostly misleads it as well, and the answer adds little; who asks the model itself is not measured.
Rule 2: the attacker who knows the guard sends whichever of its results the verdict with the answer minds least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from guard.answer_evidence import AnswerCalibration
from guard.cascade import Readings
from guard.fusion import Floats
from guard.items_on_disk import Items
from guard.offline.findings.evaluation import AnsweredRow
from guard.offline.findings.intervals import Promise, Rate, caught_at, rejections_band
from guard.offline.model.answering import Answering
from guard.offline.programs.opened_guard import Rates
from guard.offline.training.answer_calibration import ties_of
from guard.value_box import ValueBox


@dataclass(frozen=True, eq=False)
class BothVerdicts:
    """The p-values of the same items [item]: by the programs alone, before the model's answer, and with it."""

    alone: Floats
    before: Floats
    held: Floats

    def row(self, name: str, promises: Sequence[Promise], rates: Rates) -> AnsweredRow:
        return AnsweredRow(
            name=name,
            alone=Rate.of(self.alone <= rates.reject),
            held=Rate.of(self.held <= rates.reject),
            before=Rate.of(self.before <= rates.reject),
            caught_alone=caught_at(promises, self.alone),
            caught_held=caught_at(promises, self.held),
        )


@dataclass(frozen=True, eq=False)
class AnsweredStage:
    """What it takes to judge items with a closed model's answers."""

    known: AnswerCalibration
    answering: Answering
    box: ValueBox
    promises: tuple[Promise, ...]
    rates: Rates

    def judged(self, readings: Readings, images: Items) -> BothVerdicts:
        """Ask the model about unit-space images [item, ...] that the programs have read, and judge them."""
        after = self.known.after(readings, ties_of(images, self.box), self.answering.predict(images[:]))
        return BothVerdicts(readings.p_value, self.known.before(readings).p_value, after.p_value)

    def row(self, name: str, readings: Readings, images: Items) -> AnsweredRow:
        return self.judged(readings, images).row(name, self.promises, self.rates)

    def clean_row(self, readings: Readings, images: Items) -> AnsweredRow:
        """Return the row of clean items, with the number of rejections in which the promise holds."""
        band = rejections_band(self.rates.reject, self.known.base.items, len(readings.p_value))
        return replace(self.row("clean", readings, images), band=band)

    def worst_row(
        self, name: str, results: Sequence[tuple[Readings, NDArray[np.float32]]], labels: NDArray[np.int64]
    ) -> AnsweredRow:
        """Return the row of an attacker's best: for each item the result that fools the model and is minded least.

        `results` are several attempts on the same items, whose true classes are `labels` [item].
        """
        fooled = np.stack([readings.prediction != labels for readings, _ in results])  # [result, item]
        judged = [self.judged(readings, images) for readings, images in results]
        alone, before, held = (
            np.where(fooled, np.stack(values), -1.0).max(axis=0)
            for values in zip(*((one.alone, one.before, one.held) for one in judged), strict=True)
        )
        chosen = fooled.any(axis=0)
        return BothVerdicts(alone[chosen], before[chosen], held[chosen]).row(name, self.promises, self.rates)
