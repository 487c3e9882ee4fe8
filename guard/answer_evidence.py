"""A closed model's own answer as evidence: its distance from the student's, calibrated as one more detector.

Rule 1: an answer only adds to a risk: what is rejected without one is rejected whatever the model answers.
Rule 2: probabilities and labels are calibrated each by itself, since a client chooses in which of them it is answered.

How it works. The programs read the student; then the model's answer gives one more score, the Kullback-Leibler
divergence of the model's shares of the classes p from the student's q: the sum of p ln(p / q), in nats. A label is a
share of 1, and its score is -ln q(label). The score joins those of the last program under a fusion of its own, and the
risk is ranked among those of clean items that the model has answered: one risk, one promise. What an earlier program
has decided keeps its risk. Before there is an answer, the same fusion without the answer's share of the risk gives the
least that any answer can lead to, and so the largest p-value.

Example: the student's shares are 0.9 and 0.1. The answer 0.8 and 0.2 scores 0.8 ln(0.8 / 0.9) + 0.2 ln(0.2 / 0.1)
= 0.044, the label 0 scores -ln 0.9 = 0.105, and the label 1, on which the student does not agree, -ln 0.1 = 2.303.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from guard.bundle import ANSWER_CALIBRATIONS, Bundle, read_npz
from guard.calibration import Calibration
from guard.cascade import Readings, cascade_risk, level_below
from guard.errors import BundleError
from guard.fusion import Floats, Fusion

AnswerKind = Literal["probabilities", "label"]
KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)
ANSWER = "answer"  # the name of the score, behind those of the detectors
Evidence = Mapping[AnswerKind, "AnswerCalibration"]


@dataclass(frozen=True, eq=False)
class ModelAnswer:
    """A model's answer as shares of the classes; where it is a label, each share is 1 or 0."""

    kind: AnswerKind
    shares: NDArray[Any]  # [item, class]


def divergence(shares: NDArray[Any], logits: NDArray[Any]) -> Floats:
    """The divergence [item] in nats of a model's shares [item, class] from what a student's logits [item, class] say.

    It is 0 where both say the same, and has no upper bound; it is finite where the logits are.
    """
    whole = np.maximum(shares.astype(np.float64), 0.0)
    whole /= whole.sum(axis=1, keepdims=True)
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    student = wide - top - np.log(np.exp(wide - top).sum(axis=1, keepdims=True))
    model = np.log(np.where(whole > 0, whole, 1.0))
    return np.asarray((whole * (model - student)).sum(axis=1), dtype=np.float64)


def as_labels(shares: NDArray[Any]) -> NDArray[np.float32]:
    """The shares [item, class] of a model that names the same classes, and nothing but these."""
    return np.asarray(np.eye(shares.shape[1], dtype=np.float32)[shares.argmax(axis=1)])


@dataclass(frozen=True, eq=False)
class AnswerCalibration:
    """The calibration of programs and answer together, for answers of one kind."""

    calibration: Calibration  # of the programs' detectors and, behind those of the last program, ANSWER

    def before(self, readings: Readings, ties: Floats) -> Readings:
        """The readings of items that the model has not answered: their risk is the least that an answer can lead to.

        `readings` are the programs', and `ties` [item] break ties, as `cascade.jitter` has them.
        """
        nothing = np.zeros((len(readings.risk), 1))
        found = self.joined(readings, ties, nothing, without_answer(self.calibration.fusions[-1]))
        scores = np.concatenate([readings.scores, np.full_like(nothing, np.nan)], axis=1)
        return replace(found, scores=scores, detector_p=self.calibration.detector_p_values(scores))

    def after(self, readings: Readings, ties: Floats, shares: NDArray[Any]) -> Readings:
        """The readings of items with the model's answer, as shares [item, class], beside the programs' scores."""
        score = divergence(shares, readings.logits)[:, None]
        return self.joined(readings, ties, score, self.calibration.fusions[-1])

    def joined(self, readings: Readings, ties: Floats, score: Floats, fusion: Fusion) -> Readings:
        """The readings with a further score [item, 1], and the risk that a fusion of the last program makes of all."""
        last = len(self.calibration.programs) - 1
        scores = np.concatenate([readings.scores, score], axis=1)
        open_still = readings.program == last
        own = np.maximum(fusion.risk(scores[open_still]), without_answer(fusion).risk(scores[open_still]))
        risk = readings.risk.copy()
        risk[open_still] = cascade_risk(level_below(last), own) + ties[open_still]
        p_value = self.calibration.p_value(risk)
        return replace(
            readings,
            scores=scores,
            risk=risk,
            p_value=p_value,
            detector_p=self.calibration.detector_p_values(scores),
        )


def without_answer(fusion: Fusion) -> Fusion:
    """The fusion whose last score adds nothing, in either tail or alone: no larger a risk, whatever that score is."""
    weights, slopes = fusion.weights.copy(), fusion.surprise.slopes.copy()
    weights[-1], slopes[-1] = 0.0, 0.0
    return replace(fusion, weights=weights, surprise=replace(fusion.surprise, slopes=slopes))


def with_answer(base: Calibration, fusion: Fusion, risk: Floats, scores: Floats) -> Calibration:
    """The calibration of programs and answer; clean risks [item] and answers' scores [item], in the base's order."""
    return replace(
        base,
        detectors=(*base.detectors, ANSWER),
        programs=(*base.programs[:-1], base.programs[-1] + 1),
        fusions=(*base.fusions[:-1], fusion),
        clean_risks=risk,
        clean_scores=np.concatenate([base.clean_scores, scores[:, None]], axis=1),
    )


def evidence_of(bundle: Bundle) -> Evidence:
    """The calibrations that a bundle has for its model's answers, by their kind; none of a model that was opened.

    Raises:
        BundleError: one of them is not of this bundle's programs.
    """
    base, found = bundle.calibration, {}
    for kind in KINDS:
        file = bundle.path / ANSWER_CALIBRATIONS[kind]
        if not file.is_file():
            continue
        known = Calibration.from_arrays(read_npz(file))
        if known.detectors != (*base.detectors, ANSWER) or known.bands != base.bands:
            raise BundleError(f"{file} is not of this bundle's programs; train the bundle again")
        found[kind] = AnswerCalibration(known)
    return found
