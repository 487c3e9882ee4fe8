"""Values that inputs fill, and whether they are those of the model: its range, its steps, its black and white."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.array_room import float_parts
from guard.errors import DataError
from guard.manifest import InputSpec

MAX_UNIT_SHARE = 0.02  # of the model's range: float values that fill no more of it, from its zero on, are in [0, 1]
MAX_BLACK_STEPS = 16  # of 255: pictures that are no brighter anywhere are none
MIN_JUDGED_ITEMS = 16  # fewer may all be dark, or bright, by chance


@dataclass(frozen=True, eq=False)
class ValueSpan:
    """The values that inputs fill, and one of them that is no whole number, where there is any."""

    low: NDArray[np.float32]  # [channel] or [feature]
    high: NDArray[np.float32]
    broken: float | None
    items: int

    @staticmethod
    def of(images: NDArray[Any]) -> ValueSpan:
        """Return the span of inputs whose channels are first."""
        others = tuple(axis for axis in range(images.ndim) if axis != 1)
        low, high = (found.astype(np.float32) for found in (images.min(axis=others), images.max(axis=others)))
        return ValueSpan(low, high, odd(images), len(images))

    def __or__(self, other: ValueSpan) -> ValueSpan:
        """Return the span of both together; of two broken values the first."""
        broken = other.broken if self.broken is None else self.broken
        both = self.items + other.items
        return ValueSpan(np.minimum(self.low, other.low), np.maximum(self.high, other.high), broken, both)


def check_values_fit(span: ValueSpan, spec: InputSpec, source: str) -> None:
    """Raise DataError for values that are in [0, 1] where the model takes others, or that its bytes cannot hold."""
    low, high = float(span.low.min()), float(span.high.max())
    widest = max(b - a for a, b in zip(spec.low, spec.high, strict=True))
    many = spec.axes.pictures and span.items >= MIN_JUDGED_ITEMS and spec.dtype != np.uint8
    if low >= 0 and high <= min(1, MAX_UNIT_SHARE * widest) and (span.broken is not None or many):
        raise DataError(
            f"{source}: values span [{low:g}, {high:g}] of the model's range [{min(spec.low):g}, {max(spec.high):g}], "
            "all but black; wanted the model's own values: multiply them, or hand over uint8"
        )
    if many and low >= 0 and high <= 1 and min(spec.low) < 0:
        raise DataError(
            f"{source}: values span [{low:g}, {high:g}], as pictures have before they are normalised, and the model's "
            f"range is [{min(spec.low):g}, {max(spec.high):g}]; wanted the model's own values: normalise them or hand "
            "over uint8; where the model takes 0 to 1, say --range 0 1"
        )
    if span.broken is not None and spec.dtype == np.uint8:
        raise DataError(
            f"{source}: the model takes bytes, and values such as {span.broken:g} are no whole numbers; "
            "wanted uint8 images, or whole numbers in the model's range"
        )


def check_bytes(highest: int, items: int, source: str) -> None:
    """Raise DataError for bytes of pictures that are all but black, as those of 0 and 1 or of 16 grey levels are."""
    if items >= MIN_JUDGED_ITEMS and highest <= MAX_BLACK_STEPS:
        raise DataError(
            f"{source}: bytes span 0 to {highest} in {items:,} pictures, all but black; wanted 0 black to 255 white: "
            "multiply them (where their files hold 12 bits in 16, those), or hand over floats in the model's range"
        )


def odd(images: NDArray[Any]) -> float | None:
    """Return the first value that is no whole number, or None."""
    if images.dtype == np.uint8:
        return None
    for part in float_parts(images):
        values = images[part].reshape(-1)
        broken = np.abs(values - np.rint(values)) > 1e-3
        if broken.any():
            return float(values[int(np.argmax(broken))])
    return None


def check_box(span: ValueSpan, spec: InputSpec, source: str) -> None:
    """Raise DataError for values outside the model's box, naming the channel or feature that leaves it furthest."""
    least, most = span.low, span.high
    low, high = (bound.reshape(-1) for bound in spec.box.bounds)
    beyond = np.maximum((low - least) / (high - low), (most - low) / (high - low) - 1)  # [channel] or [feature]
    if beyond.max() <= 1e-3:
        return
    worst = int(beyond.argmax())
    several = len(spec.low) > 1
    bottom, top = (least[worst], most[worst]) if several else (least.min(), most.max())
    place = worst if several else 0
    where = f" of {spec.axes.part} {worst}" if several else ""
    raise DataError(
        f"{source}: values{where} span [{bottom:g}, {top:g}], outside the model's range "
        f"[{spec.low[place]:g}, {spec.high[place]:g}]; set --range (or --mean and --std) to what the model expects"
    )
