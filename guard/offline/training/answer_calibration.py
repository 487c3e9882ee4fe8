"""Calibration of a closed model's answers beside the programs' scores, once for each kind of answer.

Rule 1: as for the programs alone: a fusion sees the combiner's split, ranks the calibration split, neither the other's.
Rule 2: answers are the model's own. Where it gives labels alone, there is no calibration of probabilities.
Rule 3: no crafted attack asks the model itself, so none shows what an answer is worth: a share of the rate is kept for
it, as for a second opinion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.answer_evidence import AnswerCalibration, AnswerKind, as_labels, divergence, with_answer
from guard.calibration import Calibration
from guard.cascade import Readings, jitter
from guard.fusion import Floats
from guard.items_on_disk import Items
from guard.offline.data.attacked import Attacked
from guard.offline.evidence.batches import batch_items
from guard.offline.model.answering import Answering
from guard.offline.programs.read import batches
from guard.offline.training.fit_fusion import fit_fusion
from guard.value_box import ValueBox


@dataclass(frozen=True, eq=False)
class AnsweredItems:
    """Items that the programs have read and the closed model has answered."""

    readings: Readings
    shares: NDArray[np.float32]  # [item, class]

    @staticmethod
    def of(readings: Readings, images: Items, answering: Answering) -> AnsweredItems:
        """Ask the closed model about unit-space images [item, ...]. Raises ModelError where it cannot answer."""
        return AnsweredItems(readings, answering.shares(images[:]))

    def score(self, kind: AnswerKind) -> Floats:
        """Return the answers' scores [item], as answers of this kind."""
        return divergence(as_labels(self.shares) if kind == "label" else self.shares, self.readings.logits)

    def scores(self, kind: AnswerKind) -> Floats:
        """Return the programs' scores and, last, the answers' [item, detector + 1]."""
        return np.concatenate([self.readings.scores, self.score(kind)[:, None]], axis=1)


@dataclass(frozen=True, eq=False)
class CombinerItems:
    """The combiner's items: clean, noisy and attacked, as programs and closed model read them."""

    clean: AnsweredItems
    noisy: AnsweredItems
    attacked: Attacked[AnsweredItems]


def kinds_of(answering: Answering) -> tuple[AnswerKind, ...]:
    """Return the kinds in which clients can be answered; a label is known wherever there are probabilities."""
    return ("probabilities", "label") if answering.gives_probabilities else ("label",)


def calibrate_answers(
    base: Calibration,
    answering: Answering,
    combiner: CombinerItems,
    ranked: AnsweredItems,
    ties: Floats,
    independent: Sequence[bool],
) -> Mapping[AnswerKind, AnswerCalibration]:
    """Return the calibrations of programs and answers together, by the kind of answer.

    `base` calibrates the programs alone; `ranked` are the items of the calibration split, whose ties [item] are broken
    as the cascade breaks them; `independent` says of each detector whether it judges by weights of its own.
    """
    found: dict[AnswerKind, AnswerCalibration] = {}
    for kind in kinds_of(answering):
        attacked = combiner.attacked.seen_as(combiner.attacked.items.scores(kind))
        fusion = fit_fusion(combiner.clean.scores(kind), combiner.noisy.scores(kind), attacked, [*independent, True])
        score = ranked.score(kind)
        unranked = AnswerCalibration(with_answer(base, fusion, base.clean_risks, score))
        shares = as_labels(ranked.shares) if kind == "label" else ranked.shares
        risk = unranked.after(ranked.readings, ties, shares).risk
        found[kind] = AnswerCalibration(with_answer(base, fusion, risk, score))
    return found


def ties_of(images: Items, box: ValueBox) -> Floats:
    """Return what breaks the ties of unit-space images [item, ...], as the cascade has it from their wire values."""
    found = [jitter(box.from_unit(some)) for some in batches(images, batch_items(images.shape[1:]))]
    return np.concatenate([np.zeros(0), *found])
