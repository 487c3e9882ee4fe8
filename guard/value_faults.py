"""Faults of an input's values: what no model can be asked about, whichever way the input came."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.feature_values import off_steps
from guard.manifest import InputSpec


def value_fault(images: NDArray[Any], spec: InputSpec) -> str | None:
    """The first fault of wire values [item, ...] in words: NaN, infinity, or a category that a feature does not have.

    Looking up a category that is not there would fail the whole batch.
    """
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        return f"input {spec.name!r} holds NaN or infinity; every value must be finite"
    for place, feature in enumerate(spec.features):
        if not feature.is_category:
            continue
        wrong = off_steps(images[:, place].astype(np.float64), feature)
        if wrong.any():
            item = int(np.argmax(wrong))
            return (
                f"input {spec.name!r}: item {item} has {images[item, place]:g} for {feature.name!r}; wanted one of "
                f"{', '.join(f'{code:g}' for code in feature.categories[:12])}"
            )
    return None
