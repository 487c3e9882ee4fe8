"""Values of a table against its features: what no feature may hold is refused by row and column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.columns import bad_value, listed
from guard.errors import DataError
from guard.features import INTEGER, NUMERIC, STEP_TOLERANCE, Feature, groups_of


def check_values(values: NDArray[Any], features: Sequence[Feature], source: str, *, steps: bool = False) -> list[str]:
    """Check values [item, feature] against their features; return what a reader should know.

    A value beyond a range that was found is odd but allowed; so is one between the steps of a number, unless `steps` is
    set, or the ends of an integer were stated.

    Raises:
        DataError: an unknown category, a fraction of an integer, a value outside a stated range or that the model
            cannot take, a one-hot group with no 1 or several; row and column are named.
    """
    beyond = []
    for place, feature in enumerate(features):
        column = np.asarray(values[:, place], dtype=np.float64)
        wrong = off_steps(column, feature) if steps or feature.kind != NUMERIC else np.zeros(len(column), np.bool_)
        if feature.kind == INTEGER and feature.is_found and not steps:
            wrong = column != np.rint(column)
        slack = STEP_TOLERANCE * (feature.step or feature.span)
        below, above = column < feature.low - slack, column > feature.high + slack
        if not feature.is_category and ((below & feature.open_low) | (above & feature.open_high)).any():
            least, most = column.min(), column.max()
            beyond.append(f"{feature.name!r} from {least:g} to {most:g}, not {feature.low:g} to {feature.high:g}")
        refused = wrong | (below & (not feature.open_low)) | (above & (not feature.open_high))
        for which, wanted in ((refused, feature.wanted), (feature.beyond_model(column), feature.taken)):
            if which.any():
                row = int(np.argmax(which))
                raise bad_value(f"{source}: row {row + 1}", feature.name, f"{column[row]:g}", wanted)
    check_groups(values, features, source)
    return [f"values beyond what the guard was trained on: {'; '.join(beyond[:6])}"] if beyond else []


def off_steps(column: NDArray[np.float64], feature: Feature) -> NDArray[np.bool_]:
    """Return which wire values [item] are none that the feature may have, its ends aside."""
    if feature.is_category:
        codes = np.asarray(feature.categories)
        apart = np.diff(codes).min() if len(codes) > 1 else 1.0
        return np.asarray(np.abs(column - feature.nearest(column)) > STEP_TOLERANCE * apart, dtype=np.bool_)
    if feature.step is None:
        return np.zeros(len(column), dtype=np.bool_)
    steps = (column - feature.low) / feature.step
    rounding = np.abs(column) * np.finfo(np.float32).eps / feature.step  # of a value that is held in float32
    return np.asarray(np.abs(steps - np.rint(steps)) > STEP_TOLERANCE + rounding, dtype=np.bool_)


def check_groups(values: NDArray[Any], features: Sequence[Feature], source: str) -> None:
    """Check that exactly one column of each one-hot group is 1. Raises DataError, which names the row."""
    for name, places in groups_of(features).items():
        ones = np.rint(values[:, places]).sum(axis=1)
        if (ones != 1).any():
            row = int(np.argmax(ones != 1))
            raise DataError(
                f"{source}: row {row + 1} has {int(ones[row])} of the columns "
                f"{listed([features[place].name for place in places])} at 1; wanted one, since they are one category "
                f"({name!r})"
            )


def within(values: NDArray[Any], features: Sequence[Feature]) -> NDArray[np.float32]:
    """Return the nearest allowed values [item, feature], inside each feature's range."""
    columns = []
    for place, feature in enumerate(features):
        column = feature.nearest(values[:, place])
        columns.append(column if feature.is_category else column.clip(feature.low, feature.high))
    return np.stack(columns, axis=1).astype(np.float32)


def features_text(features: Sequence[Feature]) -> list[str]:
    """Describe features, one line each: what it is, its values, and whether it changes."""
    return [feature_text(feature) for feature in features]


def feature_text(feature: Feature) -> str:
    more = ["immutable"] if feature.immutable else []
    more += [f"cost {feature.cost:g}"] if feature.cost != 1 else []
    more += [f"in the one-hot group {feature.group!r}"] if feature.group is not None else []
    return ", ".join((f"{feature.name}: {feature.kind}", values_text(feature), *more))


def values_text(feature: Feature) -> str:
    if feature.is_category:
        return ", ".join(feature.written(code) for code in feature.categories[:6]) + (
            f" and {len(feature.categories) - 6} more" if feature.categories[6:] else ""
        )
    whole = feature.kind == INTEGER and feature.step == 1
    step = "" if whole else ", no steps" if feature.step is None else f" in steps of {feature.step:g}"
    return f"{feature.low:g} to {feature.high:g}{step}"
