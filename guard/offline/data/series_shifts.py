"""Natural shifts of series: what clocks, gains, wires and filters do to them, without any attack."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from guard.offline.data.grid import Images
from guard.offline.data.shift import Shift


def delayed(share: float) -> Callable[[Images], Images]:
    """Shift a series in time by a share of its length; its first or last values stand for what is not known."""

    def change(series: Images) -> Images:
        steps = series.shape[1]
        moved = np.arange(steps) - np.sign(share) * max(1, round(abs(share) * steps))
        return series[:, moved.clip(0, steps - 1).astype(np.int64)]

    return change


def scaled(factor: float) -> Callable[[Images], Images]:
    """Multiply each value's distance from its channel's mean."""

    def change(series: Images) -> Images:
        mean = series.mean(axis=1, keepdims=True, dtype=np.float64)
        return np.asarray(mean + factor * (series - mean), dtype=np.float32)

    return change


def raised(by: float) -> Callable[[Images], Images]:
    """Add a constant: a sensor whose zero has drifted."""
    return lambda series: series + np.float32(by)


def smoothed(steps: int) -> Callable[[Images], Images]:
    """Average each value with its neighbours in time over an odd number of steps, the ends repeated."""

    def change(series: Images) -> Images:
        reach = min(steps, series.shape[1]) // 2
        padded = np.pad(series, ((0, 0), (reach, reach)), mode="edge")
        parts = [padded[:, first : first + series.shape[1]] for first in range(2 * reach + 1)]
        return np.asarray(np.mean(parts, axis=0, dtype=np.float64), dtype=np.float32)

    return change


def noisy(deviation: float) -> Callable[[Images], Images]:
    """Add Gaussian noise that is drawn from the series' own values, so that the same series has the same noise."""

    def change(series: Images) -> Images:
        seed = np.frombuffer(np.ascontiguousarray(series).tobytes(), dtype=np.uint32)
        return series + np.random.default_rng(seed).normal(0, deviation, series.shape).astype(np.float32)

    return change


SERIES_SHIFTS: tuple[Shift, ...] = (
    Shift("noise", "1%", noisy(0.01)),
    Shift("noise", "3%", noisy(0.03)),
    Shift("time", "-5%", delayed(-0.05)),
    Shift("time", "+5%", delayed(0.05)),
    Shift("scale", "x 0.9", scaled(0.9)),
    Shift("scale", "x 1.1", scaled(1.1)),
    Shift("offset", "-3%", raised(-0.03)),
    Shift("offset", "+3%", raised(0.03)),
    Shift("smoothing", "3 steps", smoothed(3)),
    Shift("smoothing", "5 steps", smoothed(5)),
)
# The mildest of each, beside noise of the attacks' sizes: a guard learns that they are no attacks.
SERIES_NEGATIVES: tuple[Shift, ...] = (
    Shift("noise", "1%", noisy(0.01)),
    Shift("time", "+2%", delayed(0.02)),
    Shift("time", "-2%", delayed(-0.02)),
    Shift("scale", "x 0.95", scaled(0.95)),
    Shift("smoothing", "3 steps", smoothed(3)),
)
