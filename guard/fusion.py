"""From the scores of several detectors to one risk an item.

Rule 1: a risk is an unsaturated real number.
Rule 2: more unusual is never less risky: a risk rises, or stays, when a score moves further into a tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from guard.errors import BundleError

Floats = NDArray[np.float64]

HINGES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # on asinh(z): where the slope of a tail's contribution may change


@dataclass(frozen=True)
class Surprise:
    """What a single detector may say against all others: its score lies where clean scores thin out to nothing.

    How far out, upwards, is counted in an exponential tail of each detector, and the furthest one speaks, after
    Tippett's smallest p. `floor` and `pace` put that on the scale of a fitted risk.
    """

    starts: Floats  # [detector] where the tail begins
    slopes: Floats  # [detector] per score, >= 0; zero where a detector showed no tail
    floor: float  # the risk at the start of the tails
    pace: float  # >= 0

    @staticmethod
    def silent(detectors: int) -> Surprise:
        return Surprise(np.zeros(detectors), np.zeros(detectors), 0.0, 0.0)

    def risk(self, scores: Floats) -> Floats:
        """[item, detector] -> [item]; -inf before the tails, where nothing surprises."""
        furthest = self.furthest(scores)
        return np.where(furthest > 0, self.floor + self.pace * furthest, -np.inf)

    def furthest(self, scores: Floats) -> Floats:
        """[item, detector] -> [item], in lengths of a tail beyond its start."""
        with np.errstate(invalid="ignore"):  # an infinite score of a detector that is not heard
            return np.asarray(((scores - self.starts) * self.slopes).max(axis=1), dtype=np.float64)


@dataclass(frozen=True)
class Fusion:
    """Scores of several detectors -> one risk, looking at both tails of each.

    A score is first placed on a normal scale by the quantiles of clean scores (linear beyond the last knot, so that
    nothing saturates). Each tail then contributes a rising piecewise linear function of asinh(z); `weights` are its
    slopes' increments, none negative. Where one detector alone is more alarmed than their sum, it is heard.
    """

    knots: Floats  # [detector, knot] clean scores, rising
    levels: Floats  # [knot] the normal quantiles that the knots stand for
    weights: Floats  # [detector, tail, hinge], tails are (upper, lower), all >= 0
    bias: float
    surprise: Surprise

    def risk(self, scores: Floats) -> Floats:
        """[item, detector] -> [item]; log-odds of "attacked" if the weights were fitted on attacks."""
        return np.maximum(self.fused(scores), self.surprise.risk(scores))

    def fused(self, scores: Floats) -> Floats:
        """[item, detector] -> [item], of all detectors together."""
        fused: Floats = np.einsum("idth,dth->i", self.features(scores), self.weights) + self.bias
        return fused

    def features(self, scores: Floats) -> Floats:
        """[item, detector] -> [item, detector, tail, hinge], none negative."""
        z = np.stack([scale.place(scores[:, d]) for d, scale in enumerate(self.scales)], axis=1)
        tails = np.arcsinh(np.maximum(np.stack([z, -z], axis=2), 0.0))
        features: Floats = np.maximum(tails[..., None] - np.asarray(HINGES), 0.0)
        return features

    @cached_property
    def scales(self) -> tuple[Scale, ...]:
        return tuple(Scale.through(knots, self.levels) for knots in self.knots)

    def verify(self, detectors: int) -> None:
        """Raises BundleError when the parts do not fit each other, or would let an unusual score lower the risk."""
        alone = self.surprise
        if self.knots.shape[0] != detectors or self.weights.shape != (detectors, 2, len(HINGES)):
            raise BundleError(
                f"calibration.npz holds a fusion of {self.knots.shape[0]} detectors where {detectors} were expected"
            )
        if self.levels.shape != self.knots.shape[1:]:
            raise BundleError("calibration.npz holds a fusion whose knots and levels do not match")
        if not alone.starts.shape == alone.slopes.shape == (detectors,):
            raise BundleError(f"calibration.npz holds {alone.starts.size} tails where {detectors} were expected")
        arrays = (self.knots, self.levels, self.weights, alone.starts, alone.slopes)
        numbers = (self.bias, alone.floor, alone.pace)
        if not (np.isfinite(numbers).all() and all(np.isfinite(part).all() for part in arrays)):
            raise BundleError("calibration.npz holds a fusion that is not finite")
        if (self.weights < 0).any() or (alone.slopes < 0).any() or alone.pace < 0:
            raise BundleError("calibration.npz holds a negative weight: a more unusual score would lower the risk")


@dataclass(frozen=True)
class Scale:
    """One detector's normal scale: rising values, their levels, and the slope before, between and beyond them."""

    values: Floats  # [knot]
    levels: Floats  # [knot]
    slopes: Floats  # [knot + 1]; the outer pieces have their neighbours' slopes

    @staticmethod
    def through(knots: Floats, levels: Floats) -> Scale:
        """A tie among knots (a discrete score) stands for its middle level."""
        values, first, count = np.unique(knots, return_index=True, return_counts=True)
        middle = (levels[first] + levels[first + count - 1]) / 2
        if values.size == 1:
            return Scale(values, middle, np.full(2, 1.0 / (1e-3 * max(abs(float(values[0])), 1.0))))
        rise = np.diff(middle) / np.diff(values)
        return Scale(values, middle, np.concatenate([rise[:1], rise, rise[-1:]]))

    def place(self, scores: Floats) -> Floats:
        """Scores [item] on the normal scale; beyond the outer knots the line goes on."""
        piece = self.values.searchsorted(scores)
        anchor = np.maximum(piece - 1, 0)
        placed: Floats = self.levels[anchor] + (scores - self.values[anchor]) * self.slopes[piece]
        return placed


def normal_scale(scores: Floats, knots: Floats, levels: Floats) -> Floats:
    """Scores [item] on the normal scale of their clean quantiles."""
    return Scale.through(knots, levels).place(scores)


def clean_knots(scores: Floats, count: int = 33) -> tuple[Floats, Floats]:
    """Quantile knots [detector, knot] of clean scores and the normal levels [knot] that they stand for."""
    usable = min(count, max(3, scores.shape[0] // 2))
    shares = (np.arange(usable) + 0.5) / usable
    levels = np.asarray([NormalDist().inv_cdf(float(share)) for share in shares])
    return np.quantile(scores, shares, axis=0).T.copy(), levels


def unfitted(scores: Floats, *, bias: float = 0.0) -> Fusion:
    """Fusion without any crafted attack: every tail of every detector weighs the same.

    A sum over both tails, after Fisher.
    """
    knots, levels = clean_knots(scores)
    weights = np.zeros((scores.shape[1], 2, len(HINGES)))
    weights[:, :, 0] = 1.0
    return Fusion(knots, levels, weights, bias, Surprise.silent(scores.shape[1]))
