"""Standard deviation that numbers are divided by, never so small that rounding in another runtime decides."""

from __future__ import annotations

from torch import Tensor

MIN_DEVIATION = 1e-6
MIN_SHARE_OF_MEAN = 1e-4  # float32 sums of thousands of values differ between runtimes by some 1e-6 of themselves


def spread_of(values: Tensor, *, finest: float = 1.0) -> Tensor:
    """Return the deviation of each number [item, number] over items, at least a small share of its mean.

    `finest` is the share of a deviation that is still told apart: the least is so much wider.

    Example: a pruned channel is 37.3 for every item, give or take 4e-6 in one runtime or another. Divided by 1e-6 that
    would be four deviations; divided by 0.00373 it is nothing.
    """
    least = (MIN_SHARE_OF_MEAN * values.mean(dim=0).abs() / finest).clamp_min(MIN_DEVIATION)
    return values.std(dim=0).maximum(least)
