"""Bounds of the numbers that a recipe sets in detectors and denoisers, by name: one name means one thing everywhere.

A part may demand more of its own settings, such as a window of an odd size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SEEDS = range(2**63)  # that every generator takes

FROM_ONE = frozenset(
    {"bits", "count", "depth", "epochs", "neighbours", "patch", "patches", "quality", "references", "rows", "search"}
    | {"steps", "thresholds", "trees", "width", "window"}
)
ABOVE_ZERO = frozenset({"bandwidth", "learning_rate", "radius", "strength", "weight"})
NOT_NEGATIVE = frozenset({"budget", "noise"})
SHARES = frozenset({"share", "shrinkage"})  # above zero, at most one
INSIDE_UNIT = frozenset({"smallest", "threshold", "value"})  # from zero to one
WHOLE = frozenset({"key", "seed"})  # from zero on
AT_MOST: Mapping[str, int] = {
    "bits": 16,
    "depth": 16,  # a tree has two to the power of it leaves
    "window": 63,
}


def check_number(name: str, value: Any) -> None:
    """Check one setting by its name; a name without bounds is not checked, nor is None. Raises ValueError."""
    if value is None or (wanted := refusal(name, value)) is None:
        return
    raise ValueError(f"{name} = {value!r}; wanted {wanted}")


def refusal(name: str, value: Any) -> str | None:
    """Return what was wanted of a setting, or None where the value is that."""
    if name in FROM_ONE:
        most = AT_MOST.get(name)
        within = is_whole(value) and value >= 1 and (most is None or value <= most)
        wanted = f"a whole number from 1 {f'to {most}' if most else 'on'}"
    elif name in WHOLE:
        within, wanted = is_whole(value) and value in SEEDS, f"a whole number from 0 to {SEEDS[-1]}"
    elif name in ABOVE_ZERO:
        within, wanted = is_number(value) and value > 0, "a number above 0"
    elif name in NOT_NEGATIVE:
        within, wanted = is_number(value) and value >= 0, "a number from 0 on"
    elif name in SHARES:
        within, wanted = is_number(value) and 0 < value <= 1, "a number above 0, at most 1"
    elif name in INSIDE_UNIT:
        within, wanted = is_number(value) and 0 <= value <= 1, "a number from 0 to 1"
    else:
        return None
    return None if within else wanted


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
