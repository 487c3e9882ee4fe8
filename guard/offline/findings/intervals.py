"""The figures of a report: shares and areas with their 95 % intervals, and the rates at which they can be stated.

Rule 1: every share and every AUROC carries its interval.
Rule 2: a rate that the calibration items cannot promise, or the test items cannot show, has no number, but a reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom, binomtest

from guard.calibration import auroc, check_promise
from guard.errors import PromiseError
from guard.fusion import Floats

PROMISED_RATES = (0.001, 0.01, 0.05)  # the rates that every report states, whatever the bundle's own are
SMALL_RATE, MIN_EXPECTED_ALARMS = (
    0.01,
    3,
)  # below this rate the test items must be enough for so many false alarms, or nothing is said
NORMAL_DEVIATIONS = 1.96


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927), as it stands beside every rate that is printed."""
    if trials == 0:
        return 0.0, 1.0
    found = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return float(found.low), float(found.high)


def rejections_band(rate: float, items: int, held_out: int, *, level: float = 0.999) -> tuple[int, int]:
    """The central band of the number of rejections among `held_out` clean items, at a promised rate.

    BetaBinomial(m, k, n+1-k) with k = floor(rate (n+1)), where n clean items calibrate and m are held out. For example,
    0 to 29 of 1,000 held-out items at 1 % on 999 calibration items.

    Source: Angelopoulos & Bates 2021, arXiv:2107.07511, section 3.2 (their coverage, turned to rejections).
    """
    k = math.floor(rate * (items + 1) + 1e-12)
    if k == 0:
        return 0, 0
    tail = (1 - level) / 2
    low, high = betabinom(held_out, k, items + 1 - k).ppf([tail, 1 - tail])
    return int(low), int(high)


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    items: int

    @staticmethod
    def of(hits: NDArray[np.bool_]) -> Rate:
        return Rate.counted(int(hits.sum()), int(hits.size))

    @staticmethod
    def counted(count: int, items: int) -> Rate:
        low, high = wilson(count, items)
        return Rate(count / items if items else float("nan"), low, high, count, items)

    def complement(self) -> Rate:
        """Return the share of the other items."""
        return Rate.counted(self.items - self.count, self.items)


@dataclass(frozen=True)
class Area:
    """An AUROC with its 95 % interval: the share of (clean, attacked) pairs in which the attacked item is riskier."""

    value: float
    low: float
    high: float

    @staticmethod
    def between(clean: Floats, attacked: Floats) -> Area:
        """Return the AUROC with Wilson's interval, at the effective sample size of DeLong's variance.

        That size is at most the one under chance, so the interval stays within [0, 1] and does not shrink to a point
        where the two are fully apart.

        Source: DeLong et al. 1988, Biometrics 44(3) (variance); Wilson 1927 (interval).
        """
        if len(clean) == 0 or len(attacked) == 0:
            return Area(float("nan"), 0.0, 1.0)
        value = auroc(clean, attacked)
        at_chance = 3 * len(clean) * len(attacked) / (len(clean) + len(attacked) + 1)
        variance = spread(placements(clean, attacked)) + spread(placements(-attacked, -clean))
        worth = min(value * (1 - value) / variance, at_chance) if variance > 0 else at_chance
        centre, square = (
            (value + NORMAL_DEVIATIONS**2 / (2 * worth)) / (1 + NORMAL_DEVIATIONS**2 / worth),
            NORMAL_DEVIATIONS**2,
        )
        half = NORMAL_DEVIATIONS * np.sqrt(value * (1 - value) / worth + square / (4 * worth**2)) / (1 + square / worth)
        return Area(value, max(0.0, min(value, float(centre - half))), min(1.0, max(value, float(centre + half))))


def placements(clean: Floats, attacked: Floats) -> Floats:
    """Return for each attacked item the share of clean ones below it, ties counting half."""
    ordered = np.sort(clean)
    both = np.searchsorted(ordered, attacked, side="left") + np.searchsorted(ordered, attacked, side="right")
    return np.asarray(both / (2 * len(clean)), dtype=np.float64)


def spread(values: Floats) -> float:
    """Return the variance of the mean of these values."""
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Promise:
    """A promised rate: whether so many clean calibration items can promise it, and so many test items show it."""

    rate: float
    items: int  # for calibration
    reason: str | None  # why nothing is stated at this rate
    tested: int | None = None  # clean test items

    @property
    def name(self) -> str:
        return f"{self.rate:g}"

    @staticmethod
    def of(rate: float, items: int, tested: int | None = None) -> Promise:
        reasons = []
        try:
            check_promise(rate, items, name="rate")
        except PromiseError as error:
            reasons.append(str(error))
        if tested is not None and rate < SMALL_RATE and tested < math.ceil(MIN_EXPECTED_ALARMS / rate):
            reasons.append(
                f"{tested} clean test items cannot show it; it takes {math.ceil(MIN_EXPECTED_ALARMS / rate)}"
            )
        return Promise(rate, items, "; and ".join(reasons) or None, tested)


def promises_of(items: int, tested: int) -> tuple[Promise, ...]:
    """Return the promises at the rates that every report states."""
    return tuple(Promise.of(rate, items, tested) for rate in PROMISED_RATES)


Caught = Mapping[float, Rate | None]  # by the promised rate; None where it cannot be promised


def caught_at(promises: Sequence[Promise], p_value: Floats) -> Caught:
    """Return the share of items whose p-value is at most each rate; None where there is a reason to state none."""
    return {p.rate: Rate.of(p_value <= p.rate) if p.reason is None else None for p in promises}
