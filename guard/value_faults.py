"""Faults of an input's values: what no model can be asked about, whichever way the input came."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.feature_values import off_steps
from guard.manifest import InputSpec


def value_fault(images: NDArray[Any], spec: InputSpec) -> str | None:
    """The first fault of wire values [item, ...] in words: NaN, infinity, or what a feature of the model cannot be.

    Looking up a category that is not there would fail the whole batch, and so would a whole number that is looked up.
    """
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        return f"input {spec.name!r} holds NaN or infinity; every value must be finite"
    for place, feature in enumerate(spec.features):
        column = images[:, place].astype(np.float64)
        wrong = off_steps(column, feature) if feature.is_category else feature.beyond_model(column)
        if wrong.any():
            item = int(np.argmax(wrong))
            codes = f"one of {', '.join(f'{code:g}' for code in feature.categories[:12])}"
            return (
                f"input {spec.name!r}: item {item} has {images[item, place]:g} for {feature.name!r}; wanted "
                f"{codes if feature.is_category else feature.taken}"
            )
    return None
