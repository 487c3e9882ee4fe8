"""A stopwatch that times several things against each other, on a machine that does other work as well.

Rule 1: contenders take turns in one run; what is compared was measured within the same round.
Rule 2: ratios and differences are formed round by round; only their medians and quartiles are reported.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Clock = Callable[[], int]  # nanoseconds since an arbitrary moment
BURST_S = 0.002  # short calls are repeated for this long: the first finds the caches as the last contender left them
WARM_UP_CALLS = 3  # calls of each before anything is recorded
MIN_ROUNDS, MAX_ROUNDS = 5, 2000  # rounds


@dataclass(frozen=True)
class Spread:
    """The median of many measurements, and the quartiles around it."""

    median: float
    low: float
    high: float

    @property
    def relative(self) -> float:
        """The interquartile range over the median."""
        return (self.high - self.low) / abs(self.median) if self.median else math.inf


def spread(values: NDArray[np.float64]) -> Spread:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


@dataclass(frozen=True)
class Laps:
    """The times of all rounds: microseconds a call, of each contender in each round."""

    names: tuple[str, ...]
    microseconds: NDArray[np.float64] = field(repr=False)  # [round, contender]

    @property
    def rounds(self) -> int:
        return len(self.microseconds)

    def of(self, name: str) -> NDArray[np.float64]:
        """Return the microseconds a call of one contender [round]."""
        column: NDArray[np.float64] = self.microseconds[:, self.names.index(name)]
        return column


def race(
    contenders: Mapping[str, Callable[[], object]], *, seconds: float, clock: Clock = time.perf_counter_ns
) -> Laps:
    """Let the contenders take turns for `seconds`, at least MIN_ROUNDS rounds, each round in another order."""
    names = tuple(contenders)
    bursts = [calls_in(contenders[name], clock) for name in names]
    rounds: list[list[float]] = []
    with garbage_kept():
        until = time.perf_counter_ns() + int(seconds * 1e9)
        while len(rounds) < MIN_ROUNDS or (time.perf_counter_ns() < until and len(rounds) < MAX_ROUNDS):
            laps = [0.0] * len(names)
            for place in turns(len(names), len(rounds)):
                laps[place] = lap(contenders[names[place]], bursts[place], clock)
            rounds.append(laps)
    return Laps(names, np.asarray(rounds, dtype=np.float64))


def turns(contenders: int, number: int) -> list[int]:
    """Return the order of round `number`: each contender comes first in turn, every other round runs backwards."""
    order = [(place + number // 2) % contenders for place in range(contenders)]
    return order if number % 2 == 0 else order[::-1]


def calls_in(contender: Callable[[], object], clock: Clock) -> int:
    """Warm a contender up, and return how many of its calls fill a burst."""
    for _ in range(WARM_UP_CALLS):
        contender()
    return max(1, math.ceil(BURST_S * 1e6 / max(lap(contender, 1, clock), 1.0)))


def lap(contender: Callable[[], object], calls: int, clock: Clock) -> float:
    """Measure the microseconds that a call takes, over several calls."""
    began = clock()
    for _ in range(calls):
        contender()
    return (clock() - began) / (1e3 * calls)


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Suspend garbage collection for the length of a measurement."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
