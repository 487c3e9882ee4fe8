"""Enough items to learn from; too few are refused, with what to do.

What a detector or a denoiser learns from fewer says nothing about items that it has not seen.
"""

from __future__ import annotations

from guard.errors import DataError

MIN_ITEMS = 20


def check_clean(learner: str, items: int) -> None:
    """Raise DataError where there are too few clean items for this detector or denoiser."""
    if items < MIN_ITEMS:
        raise DataError(
            f"{learner} learns from clean items; got {items}, wanted at least {MIN_ITEMS}: give more data, or leave "
            f"{learner} out of the recipe"
        )


def check_attacked(learner: str, items: int) -> None:
    """Raise DataError where attacks have made too few items for this detector or denoiser."""
    if items < MIN_ITEMS:
        raise DataError(
            f"{learner} learns from attacked items; got {items}, wanted at least {MIN_ITEMS}: give more data that the "
            f"model is right on, a recipe with attacks that succeed, or leave {learner} out of the recipe"
        )
