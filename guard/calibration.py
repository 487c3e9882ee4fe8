"""Calibration: the risk of an item becomes a p-value, which promises a false-alarm rate.

Rule 1: nothing here was fitted on the items that it is calibrated on.
Rule 2: only ranks of risks ever reach a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import BundleError, PromiseError
from guard.fusion import Floats, Fusion, Surprise
from guard.near_copies import Nearness

QUANTILE_TOLERANCE = 1e-6
WARN_FACTOR = 10  # a promise resting on fewer than this many clean items above the threshold is thin


@dataclass(frozen=True)
class Band:
    """The risks for which a program leaves the decision to the next one; outside of them it decides by itself."""

    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Calibration:
    """The calibration of a cascade: everything between the scores of its programs and a p-value.

    It is read from, and written to, `calibration.npz`.
    """

    detectors: tuple[str, ...]  # in the order of the programs
    programs: tuple[int, ...]  # how many of the detectors each program adds
    fusions: tuple[Fusion, ...]  # one a program, over its own and all earlier detectors
    bands: tuple[Band, ...]  # one for each program but the last
    clean_risks: Floats  # [item], in an order that does not depend on the risk
    clean_scores: Floats  # [item, detector], all programs run on every item
    nearness: Nearness | None = None  # of the clean items; None in older bundles, and for rows of a table

    @property
    def items(self) -> int:
        """The number of clean items that the promise rests on."""
        return int(self.clean_risks.size)

    @cached_property
    def sorted_risks(self) -> Floats:
        return np.sort(self.clean_risks)

    @cached_property
    def sorted_scores(self) -> Floats:
        """The clean scores [detector, item], rising for each detector."""
        return np.sort(self.clean_scores.T, axis=1)

    @property
    def typical_distance(self) -> float | None:
        """The distance between two clean items, as `Nearness` has it; None where it is not known."""
        return None if self.nearness is None else self.nearness.distance

    @property
    def thinned(self) -> Calibration:
        """The calibration of those clean items that are no near-copies of one another, as far as that is known."""
        if self.nearness is None:
            return self
        fresh = self.nearness.fresh
        return replace(self, clean_risks=self.clean_risks[fresh], clean_scores=self.clean_scores[fresh], nearness=None)

    def p_value(self, risk: Floats) -> Floats:
        """Share of clean calibration items at least as risky, the item itself counted: valid for any finite sample."""
        return rank_p(self.sorted_risks, risk)

    def threshold(self, rate: float) -> float:
        """The clean calibration risk that an input must exceed for a p-value of at most `rate`."""
        allowed = int(rate * (self.items + 1) + 1e-12)  # p <= rate needs at most allowed - 1 clean items at or above
        return float(self.sorted_risks[-max(allowed, 1)])

    def request_p_value(self, risk: float, rows: int) -> float:
        """The p-value of the riskiest of `rows` items, against blocks of as many calibration items.

        Raises:
            PromiseError: there are fewer calibration items than `rows`.
        """
        blocks = self.items // rows
        if blocks == 0:
            raise PromiseError(
                f"a request of {rows} rows cannot be calibrated on {self.items} clean items; "
                "use rows = 'any' or more clean data"
            )
        worst = self.clean_risks[: blocks * rows].reshape(blocks, rows).max(axis=1)
        return float(rank_p(np.sort(worst), np.asarray([risk]))[0])

    def detector_p_values(self, scores: Floats) -> Floats:
        """Two-sided p-value [item, detector] of each score among its clean ones; NaN where the detector did not run."""
        count = self.sorted_scores.shape[1]
        rarer = np.empty(scores.shape)
        for d, clean in enumerate(self.sorted_scores):
            rarer[:, d] = np.minimum(
                count - clean.searchsorted(scores[:, d]), clean.searchsorted(scores[:, d], "right")
            )
        out: Floats = np.where(np.isnan(scores), np.nan, np.minimum(1.0, 2 * (1 + rarer) / (count + 1)))
        return out

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {
            "detectors": np.asarray(self.detectors),
            "programs": np.asarray(self.programs, dtype=np.int64),
            "bands": np.asarray([[b.low, b.high] for b in self.bands], dtype=np.float64).reshape(-1, 2),
            "clean_risks": self.clean_risks,
            "clean_scores": self.clean_scores,
        }
        if self.nearness is not None:
            arrays |= {"clean_fresh": self.nearness.fresh, "clean_distance": np.asarray(self.nearness.distance)}
        for i, fusion in enumerate(self.fusions):
            arrays |= {
                f"fusion{i}_knots": fusion.knots,
                f"fusion{i}_levels": fusion.levels,
                f"fusion{i}_weights": fusion.weights,
                f"fusion{i}_bias": np.asarray(fusion.bias),
                f"fusion{i}_tails": np.stack([fusion.surprise.starts, fusion.surprise.slopes]),
                f"fusion{i}_alone": np.asarray([fusion.surprise.floor, fusion.surprise.pace]),
            }
        return arrays

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Calibration:
        """Read a calibration. Raises BundleError when an array is missing or the shapes contradict each other."""
        try:
            programs = tuple(int(n) for n in arrays["programs"])
            calibration = Calibration(
                detectors=tuple(str(name) for name in arrays["detectors"]),
                programs=programs,
                fusions=tuple(
                    Fusion(
                        knots=arrays[f"fusion{i}_knots"],
                        levels=arrays[f"fusion{i}_levels"],
                        weights=arrays[f"fusion{i}_weights"],
                        bias=float(arrays[f"fusion{i}_bias"]),
                        surprise=Surprise(*arrays[f"fusion{i}_tails"], *map(float, arrays[f"fusion{i}_alone"])),
                    )
                    for i in range(len(programs))
                ),
                bands=tuple(Band(float(low), float(high)) for low, high in arrays["bands"]),
                clean_risks=arrays["clean_risks"],
                clean_scores=arrays["clean_scores"],
                nearness=nearness_in(arrays),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(
                f"calibration.npz is not one that this version wrote ({error}); train the bundle again"
            ) from error
        calibration.verify()
        return calibration

    def verify(self) -> None:
        """Raise BundleError when the parts do not fit each other, or hold values that have no rank."""
        seen = 0
        for fusion, added in zip(self.fusions, self.programs, strict=True):
            seen += added
            fusion.verify(seen)
        if (
            seen != len(self.detectors)
            or self.clean_scores.shape != (self.items, seen)
            or len(self.bands) != len(self.programs) - 1
        ):
            raise BundleError("calibration.npz contradicts itself: detectors, scores and bands do not match")
        if not (np.isfinite(self.clean_risks).all() and np.isfinite(self.clean_scores).all()):
            raise BundleError("calibration.npz holds clean risks or scores that are not finite: they have no rank")
        if (near := self.nearness) is not None and (
            near.fresh.shape != (self.items,) or near.fresh.dtype != np.bool_ or not near.distance >= 0
        ):
            raise BundleError("calibration.npz contradicts itself: what it says of near-copies is not of its items")
        if any(math.isnan(band.low) or math.isnan(band.high) for band in self.bands):
            raise BundleError("calibration.npz holds a band without bounds")


def nearness_in(arrays: Mapping[str, NDArray[Any]]) -> Nearness | None:
    """The nearness that a calibration's arrays tell of; None where they are of an older bundle, or of rows."""
    if "clean_fresh" not in arrays:
        return None
    return Nearness(arrays["clean_fresh"], float(arrays["clean_distance"]))


def rank_p(sorted_clean: Floats, values: Floats) -> Floats:
    """The rank p-value (1 + #{clean >= value}) / (n + 1) of each value; `sorted_clean` is rising."""
    at_least = sorted_clean.size - np.searchsorted(sorted_clean, values, side="left")
    return np.asarray((1 + at_least) / (sorted_clean.size + 1), dtype=np.float64)


def smallest_rate(items: int) -> float:
    """The smallest false-alarm rate that `items` clean calibration items can promise."""
    return 1 / (items + 1)


def check_promise(rate: float, items: int, *, name: str) -> str | None:
    """Refuse a rate that cannot be promised; return a warning for one that rests on few items.

    Raises:
        PromiseError: `rate` is out of (0, 1) or below 1/(items+1); the message says how many clean items it takes.
    """
    if not 0 < rate < 1:
        raise PromiseError(f"{name} = {rate:g} is no rate; it must lie between 0 and 1")
    if rate < smallest_rate(items):
        wanted = math.ceil(1 / rate) - 1
        raise PromiseError(
            f"{name} = {rate:g} cannot be promised with {items} clean calibration items; it takes {wanted} "
            f"(the smallest rate here is {smallest_rate(items):.3g})"
        )
    if rate < WARN_FACTOR * smallest_rate(items):
        return (
            f"{name} = {rate:g} rests on {math.floor(rate * (items + 1))} of {items} clean items; "
            "the realised rate will vary widely"
        )
    return None


def realised_rates(rate: float, items: int, *, level: float = 0.95) -> tuple[float, float]:
    """The central interval of the rate that a promise on `items` clean items leads to: the beta law of its rank.

    With k = floor(rate (n+1)) of n items the realised rate is Beta(k, n+1-k): 0.5 to 1.7 % where 1 % was promised on
    999 items. Its quantiles are those of a binomial, by bisection: the rate is at most x where k of n uniforms are.

    Source: Angelopoulos & Bates 2021, arXiv:2107.07511, section 3.2.
    """
    k = math.floor(rate * (items + 1) + 1e-12)
    if k == 0:
        return 0.0, 0.0
    return beta_quantile((1 - level) / 2, k, items), beta_quantile((1 + level) / 2, k, items)


def beta_quantile(share: float, k: int, items: int) -> float:
    """The quantile of the k-th smallest of `items` uniform numbers."""
    low, high = 0.0, 1.0
    while high - low > QUANTILE_TOLERANCE:
        middle = (low + high) / 2
        below = 1 - sum(
            math.exp(
                math.lgamma(items + 1)
                - math.lgamma(i + 1)
                - math.lgamma(items - i + 1)
                + i * math.log(middle)
                + (items - i) * math.log1p(-middle)
            )
            for i in range(k)
        )
        low, high = (middle, high) if below < share else (low, middle)
    return (low + high) / 2


def auroc(negative: Sequence[float] | Floats, positive: Sequence[float] | Floats) -> float:
    """The AUROC: the share of (clean, attacked) pairs in which the attacked item is the riskier; ties count half."""
    clean, attacked = np.sort(np.asarray(negative, dtype=np.float64)), np.asarray(positive, dtype=np.float64)
    below = np.searchsorted(clean, attacked, side="left") + np.searchsorted(clean, attacked, side="right")
    return float(below.mean() / (2 * clean.size))
