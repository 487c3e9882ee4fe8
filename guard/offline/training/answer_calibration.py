"""Calibration of a closed model's answers beside the programs' risk.

Rule 1: as for the programs alone: the line sees the combiner's split, ranks the calibration split, neither the other's.
Rule 2: nothing is learned from attacked items. Those that were crafted climb the student's gradient and mostly mislead
it as well; what asks the model itself is not among them. So a fixed share of the rate is the answer's.

How it works. Beyond their ninth tenth, clean risks and clean scores of answers are taken for exponential. The line puts
a score to the risk that is as rare, in the shares of the rate that both have. Example: a tenth of the clean risks lies
above 2.0, by 0.5 on average, and a tenth of the clean scores above 0.3, by 0.2. With ANSWER_RATE_SHARE = 0.3 a score of
0.3 stands for the risk 2.0 + 0.5 ln(0.3 / 0.7) = 1.576, and each further 0.2 for 0.5 more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from guard.answer_evidence import AnswerCalibration, surprisal
from guard.calibration import Calibration
from guard.cascade import Readings, jitter
from guard.fusion import Floats
from guard.items_on_disk import Items
from guard.offline.evidence.batches import batch_items
from guard.offline.model.answering import Answering
from guard.offline.programs.read import batches
from guard.value_box import ValueBox

# Of a promised rate: for what the answer finds and the programs do not. On a forest at 5 %, with a tenth, three tenths
# or half of it, items that were found by asking the forest were caught on 50, 77 and 87 %, C&W's on 49, 48 and 41 %.
ANSWER_RATE_SHARE = 0.3
TAIL_SHARE = 0.1  # of the clean items: those that a tail is drawn through
MIN_TAIL_NATS = 1e-3  # of a tail's length: a student that never differs gives no scale to measure differences by


def calibrate_answers(
    base: Calibration,
    answering: Answering,
    combiner: tuple[Readings, Items],
    ranked: tuple[Readings, Items],
    box: ValueBox,
) -> AnswerCalibration:
    """Return the calibration of programs and answers together. Raises ModelError where the model cannot answer.

    `base` calibrates the programs alone; `combiner` and `ranked` are clean items of the combiner's and the calibration
    split, unit-space images [item, ...] and the programs' readings of them; `box` has their wire values.
    """
    risk = base.fusions[-1].risk(combiner[0].scores)
    floor, pace = line_between(risk, score_of(*combiner, answering))
    score = score_of(*ranked, answering)
    line = AnswerCalibration(base, floor, pace, score, base.clean_risks)
    clean_risks = np.maximum(base.clean_risks, line.risk(score, ties_of(ranked[1], box)))
    return AnswerCalibration(base, floor, pace, score, clean_risks)


def score_of(readings: Readings, images: Items, answering: Answering) -> Floats:
    """Return the scores [item] of a closed model's answers to images that the programs have read."""
    return surprisal(answering.predict(images[:]), readings.logits)


def line_between(risk: Floats, score: Floats) -> tuple[float, float]:
    """Return floor and pace of the line that puts scores to risks; both are of the same kind of clean items [item]."""
    (risk_start, risk_length), (start, length) = tail_of(risk), tail_of(score)
    pace = risk_length / max(length, MIN_TAIL_NATS)
    odds = ANSWER_RATE_SHARE / (1 - ANSWER_RATE_SHARE)
    return risk_start + risk_length * float(np.log(odds)) - pace * start, pace


def tail_of(values: Floats) -> tuple[float, float]:
    """Return where the largest TAIL_SHARE of the values [item] begins, and how far they lie beyond on average."""
    start = float(np.quantile(values, 1 - TAIL_SHARE))
    beyond: NDArray[np.float64] = values[values > start]
    return start, float((beyond - start).mean()) if beyond.size else 0.0


def ties_of(images: Items, box: ValueBox) -> Floats:
    """Return what breaks the ties of unit-space images [item, ...], as the cascade has it from their wire values."""
    found = [jitter(box.from_unit(some)) for some in batches(images, batch_items(images.shape[1:]))]
    return np.concatenate([np.zeros(0), *found])
