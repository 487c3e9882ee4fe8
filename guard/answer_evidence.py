"""A closed model's own answer as evidence: how surprising its student finds it, ranked with the programs' risk.

Rule 1: an answer only adds to a risk: what is rejected without one is rejected whatever the model answers.
Rule 2: only the class that the model names counts, so that a client gains nothing by asking for labels instead of
probabilities, or for both.

How it works. The programs read the student; then the model's answer gives one more score, the surprisal of the class
that it names: -ln of the student's probability of that class, in nats. A line puts the score on the scale of the last
program's risk, and the larger of the two is the item's risk. It is ranked among the risks of clean items that the model
has answered: one risk, one promise. Before there is an answer the programs' risk is the least that any can lead to, and
so its rank among the same clean items is the largest p-value.

Example: the student's probabilities are 0.9 and 0.1. If the model names class 0, the score is -ln 0.9 = 0.105; if it
names class 1, on which the student does not agree, -ln 0.1 = 2.303. With the floor -1 and the pace 2 that is a risk of
3.6: an item whose programs give 1.2 has the risk 3.6, one of 4 keeps 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import ANSWER_CALIBRATION, Bundle
from guard.calibration import Calibration
from guard.cascade import Readings, cascade_risk, level_below
from guard.errors import BundleError
from guard.fusion import Floats

ANSWER = "answer"  # the name of the score, behind those of the detectors


def surprisal(classes: NDArray[np.int64], logits: NDArray[Any]) -> Floats:
    """The surprisal [item] in nats of the classes [item] that a model names, by a student's logits [item, class].

    It is near 0 where a sure student agrees, and has no upper bound; it is finite where the logits are.
    """
    wide = logits.astype(np.float64)
    below = wide - wide.max(axis=1, keepdims=True)
    named = np.take_along_axis(below, classes[:, None], axis=1)[:, 0]
    return np.asarray(np.log(np.exp(below).sum(axis=1)) - named, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class AnswerCalibration:
    """The calibration of programs and answer together."""

    base: Calibration  # of the programs alone
    floor: float  # the risk, on the scale of the last program's, of a score of 0
    pace: float  # the rise of the risk with the score, in 1 / nats; >= 0
    clean_scores: Floats  # [item] of the answers to the base's clean items
    clean_risks: Floats  # [item] of programs and answer together

    @property
    def detectors(self) -> tuple[str, ...]:
        """The names of the scores: the detectors', and ANSWER."""
        return (*self.base.detectors, ANSWER)

    @cached_property
    def ranks(self) -> Calibration:
        """The ranks of risks and scores, the answers' among them; its fusions are those of the programs alone."""
        scores = np.concatenate([self.base.clean_scores, self.clean_scores[:, None]], axis=1)
        return replace(self.base, detectors=self.detectors, clean_risks=self.clean_risks, clean_scores=scores)

    def before(self, readings: Readings) -> Readings:
        """The programs' readings of items that the model has not answered: p-values are the largest it can lead to."""
        return self.ranked(readings, np.full(len(readings.risk), np.nan), readings.risk)

    def after(self, readings: Readings, ties: Floats, classes: NDArray[np.int64]) -> Readings:
        """The programs' readings of items and, beside them, the classes [item] that the model names.

        `ties` [item] break ties between risks, as `cascade.jitter` has them.
        """
        score = surprisal(classes, readings.logits)
        return self.ranked(readings, score, np.maximum(readings.risk, self.risk(score, ties)))

    def risk(self, score: Floats, ties: Floats) -> Floats:
        """The risk [item] of answers' scores [item], on the scale of the whole cascade: at its last program's level."""
        return cascade_risk(level_below(len(self.base.programs) - 1), self.floor + self.pace * score) + ties

    def ranked(self, readings: Readings, score: Floats, risk: Floats) -> Readings:
        scores = np.concatenate([readings.scores, score[:, None]], axis=1)
        found = self.ranks.detector_p_values(scores)
        return replace(readings, scores=scores, risk=risk, p_value=self.ranks.p_value(risk), detector_p=found)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        line = np.asarray([self.floor, self.pace])
        return {"line": line, "clean_scores": self.clean_scores, "clean_risks": self.clean_risks}

    @staticmethod
    def from_arrays(base: Calibration, arrays: Mapping[str, NDArray[Any]]) -> AnswerCalibration:
        """Read a calibration. Raises BundleError where it does not fit the programs'."""
        try:
            floor, pace = map(float, arrays["line"])
            found = AnswerCalibration(base, floor, pace, arrays["clean_scores"], arrays["clean_risks"])
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(
                f"{ANSWER_CALIBRATION} is not one that this version wrote ({error}); train the bundle again"
            ) from error
        if not found.clean_scores.shape == found.clean_risks.shape == base.clean_risks.shape:
            raise BundleError(
                f"{ANSWER_CALIBRATION} ranks {found.clean_risks.size} items, calibration.npz {base.items}"
            )
        parts = (found.clean_scores, found.clean_risks)
        if not (math.isfinite(floor) and math.isfinite(pace) and all(np.isfinite(part).all() for part in parts)):
            raise BundleError(f"{ANSWER_CALIBRATION} holds numbers that are not finite: they have no rank")
        if pace < 0 or (found.clean_risks < base.clean_risks).any():
            raise BundleError(f"{ANSWER_CALIBRATION} has an answer lower a risk; it is not of this bundle's programs")
        return found


def evidence_of(bundle: Bundle) -> AnswerCalibration | None:
    """The calibration that a bundle has for its model's answers; None of a model that was opened.

    Raises:
        BundleError: it does not fit the bundle's programs.
    """
    if ANSWER_CALIBRATION not in bundle.files:
        return None
    return AnswerCalibration.from_arrays(bundle.calibration, bundle.arrays(ANSWER_CALIBRATION))
