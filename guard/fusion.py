"""Fusion: the scores of several detectors become one risk an item.

Rule 1: a risk is an unsaturated real number.
Rule 2: more unusual is never less risky: a risk rises, or stays, when a score moves further into a tail.

How it works. Quantiles of clean scores give each detector a normal scale, on which a score becomes a z: 0 at the clean
median, 2 or -2 where clean scores are as rare as two standard deviations out. What z adds to the risk depends on asinh
of its distance from 0, which grows ever more slowly but without end; the upper and the lower tail have weights of their
own. The sum over all detectors, plus a bias, is the fused risk. A single detector whose score lies far above the clean
ones gives a risk by itself, the surprise, so that others cannot dilute it. The larger of the two is the item's risk.

Example. The knots of detector A are 1, 2, 3 and those of B 10, 20, 30, at the levels z = -1, 0, 1. Every tail has the
weight 1 at the first hinge, and the bias is 0. The surprise of A starts at 4 with slope 1, floor 1 and pace 0.5; B has
none.

    A = 5,  B = 0     z = 3, -2    fused asinh(3) + asinh(2) = 3.26    surprise 1 + 0.5 * 1 = 1.5     risk 3.26
    A = 14, B = 20    z = 12, 0    fused asinh(12) + 0 = 3.18          surprise 1 + 0.5 * 10 = 6      risk 6
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from guard.errors import BundleError

Floats = NDArray[np.float64]

HINGE_DEVIATIONS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # on asinh(z): where the slope of a tail's contribution may change


@dataclass(frozen=True)
class Surprise:
    """The risk that a single detector gives by itself: its score lies where clean scores thin out to nothing.

    The distance, upwards only, is counted in lengths of an exponential tail of each detector, and the furthest detector
    counts alone, after Tippett's smallest p. `floor` and `pace` put the distance on the scale of a fitted risk.
    """

    starts: Floats  # [detector] where the tail begins
    slopes: Floats  # [detector] per score, >= 0; zero where a detector showed no tail
    floor: float  # the risk at the start of the tails
    pace: float  # >= 0

    @staticmethod
    def silent(detectors: int) -> Surprise:
        return Surprise(np.zeros(detectors), np.zeros(detectors), 0.0, 0.0)

    def risk(self, scores: Floats) -> Floats:
        """The risk [item] of scores [item, detector]; -inf where no score lies in its tail."""
        furthest = self.furthest(scores)
        return np.where(furthest > 0, self.floor + self.pace * furthest, -np.inf)

    def furthest(self, scores: Floats) -> Floats:
        """The largest distance [item] of scores [item, detector] beyond a tail's start, in lengths of that tail."""
        with np.errstate(invalid="ignore"):  # an infinite score of a detector without a tail
            return np.asarray(((scores - self.starts) * self.slopes).max(axis=1), dtype=np.float64)


@dataclass(frozen=True)
class Fusion:
    """The fusion of several detectors' scores into one risk, which looks at both tails of each.

    A score is first placed on a normal scale by the quantiles of clean scores (linear beyond the last knot, so that
    nothing saturates). Each tail then contributes a rising piecewise linear function of asinh(z); `weights` are its
    slopes' increments, none negative. Where the surprise of one detector is larger than their sum, it is the risk.
    """

    knots: Floats  # [detector, knot] clean scores, rising
    levels: Floats  # [knot] the normal quantiles that the knots stand for
    weights: Floats  # [detector, tail, hinge], tails are (upper, lower), all >= 0
    bias: float
    surprise: Surprise

    def risk(self, scores: Floats) -> Floats:
        """The risk [item] of scores [item, detector]; log-odds of "attacked" if the weights were fitted on attacks."""
        return np.maximum(self.fused(scores), self.surprise.risk(scores))

    def fused(self, scores: Floats) -> Floats:
        """The fused risk [item] of scores [item, detector], from all detectors together."""
        fused: Floats = np.einsum("idth,dth->i", self.features(scores), self.weights) + self.bias
        return fused

    def features(self, scores: Floats) -> Floats:
        """The features [item, detector, tail, hinge] of scores [item, detector], none negative."""
        z = np.stack([scale.place(scores[:, d]) for d, scale in enumerate(self.scales)], axis=1)
        tails = np.arcsinh(np.maximum(np.stack([z, -z], axis=2), 0.0))
        features: Floats = np.maximum(tails[..., None] - np.asarray(HINGE_DEVIATIONS), 0.0)
        return features

    @cached_property
    def scales(self) -> tuple[Scale, ...]:
        return tuple(Scale.through(knots, self.levels) for knots in self.knots)

    def verify(self, detectors: int) -> None:
        """Raise BundleError when the parts do not fit each other, or would let an unusual score lower the risk."""
        alone = self.surprise
        if self.knots.shape[0] != detectors or self.weights.shape != (detectors, 2, len(HINGE_DEVIATIONS)):
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
    """The normal scale of one detector: rising values, their levels, and the slope before, between and beyond them."""

    values: Floats  # [knot]
    levels: Floats  # [knot]
    slopes: Floats  # [knot + 1]; the outer pieces have their neighbours' slopes

    @staticmethod
    def through(knots: Floats, levels: Floats) -> Scale:
        """Build the scale through knots; a tie among them (a discrete score) stands for its middle level."""
        values, first, count = np.unique(knots, return_index=True, return_counts=True)
        middle = (levels[first] + levels[first + count - 1]) / 2
        if values.size == 1:
            return Scale(values, middle, np.full(2, 1.0 / (1e-3 * max(abs(float(values[0])), 1.0))))
        rise = np.diff(middle) / np.diff(values)
        return Scale(values, middle, np.concatenate([rise[:1], rise, rise[-1:]]))

    def place(self, scores: Floats) -> Floats:
        """Place scores [item] on the normal scale; beyond the outer knots the line goes on."""
        piece = self.values.searchsorted(scores)
        anchor = np.maximum(piece - 1, 0)
        placed: Floats = self.levels[anchor] + (scores - self.values[anchor]) * self.slopes[piece]
        return placed


def normal_scale(scores: Floats, knots: Floats, levels: Floats) -> Floats:
    """Place scores [item] on the normal scale of clean quantiles."""
    return Scale.through(knots, levels).place(scores)


def clean_knots(scores: Floats, count: int = 33) -> tuple[Floats, Floats]:
    """The quantile knots [detector, knot] of clean scores and the normal levels [knot] that they stand for."""
    usable = min(count, max(3, scores.shape[0] // 2))
    shares = (np.arange(usable) + 0.5) / usable
    levels = np.asarray([NormalDist().inv_cdf(float(share)) for share in shares])
    return np.quantile(scores, shares, axis=0).T.copy(), levels


def unfitted(scores: Floats, *, bias: float = 0.0) -> Fusion:
    """The fusion without any crafted attack: every tail of every detector weighs the same.

    It is a sum over both tails, after Fisher.
    """
    knots, levels = clean_knots(scores)
    weights = np.zeros((scores.shape[1], 2, len(HINGE_DEVIATIONS)))
    weights[:, :, 0] = 1.0
    return Fusion(knots, levels, weights, bias, Surprise.silent(scores.shape[1]))
