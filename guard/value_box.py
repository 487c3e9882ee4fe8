"""The box of a model's input values, how they travel, and their map to the [0, 1] in which all but the wire works.

Example: low (0,), high (255,), bytes: 51 on the wire is 0.2. With --mean and --std each channel has bounds of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.axes import CHANNELS_LAST, from_wire, to_wire
from guard.features import Feature

FLOAT32 = np.dtype(np.float32)

Bounds = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class ValueBox:
    """The values that an input may take, and the order of axes and type in which it travels."""

    low: tuple[float, ...]  # a channel or feature (or one for all), in wire values
    high: tuple[float, ...]
    axes: int  # of one item: 3 of an image, 2 of a series, 1 of a vector
    layout: str = "NCHW"  # order of an item's axes on the wire, one of `axes.LAYOUTS`
    dtype: np.dtype[Any] = FLOAT32  # on the wire
    features: tuple[Feature, ...] = ()  # of a table: what each value may be

    @property
    def is_unit(self) -> bool:
        """Whether wire values lie in [0, 1] already."""
        return set(self.low) == {0.0} and set(self.high) == {1.0}

    @property
    def is_turned(self) -> bool:
        """Whether the wire has another order of axes than the guard."""
        return self.layout in CHANNELS_LAST

    @property
    def bounds(self) -> Bounds:
        """The low and high bounds, shaped so that they broadcast over an item, channels or features first."""
        shape = (-1,) + (1,) * (self.axes - 1)
        return np.asarray(self.low, np.float32).reshape(shape), np.asarray(self.high, np.float32).reshape(shape)

    def to_layout(self, images: NDArray[Any]) -> NDArray[Any]:
        """Transpose items, channels first, into the wire's order of axes."""
        return images.transpose(to_wire(self.layout, self.axes + 1))

    def from_layout(self, wire: NDArray[Any]) -> NDArray[Any]:
        """Transpose the wire's order of axes into items with channels first."""
        return wire.transpose(from_wire(self.layout, self.axes + 1))

    def to_unit(self, wire: NDArray[Any]) -> NDArray[np.float32]:
        """Map wire inputs to [0, 1] per channel, channel first."""
        low, high = self.bounds
        unit = (self.from_layout(wire).astype(np.float32) - low) / (high - low)
        return np.ascontiguousarray(unit, dtype=np.float32)

    def from_unit(self, unit: NDArray[Any]) -> NDArray[Any]:
        """Map [0, 1] per channel, channel first, to wire inputs.

        They are whole numbers where bytes travel, and each feature's nearest allowed value where there are features.
        """
        low, high = self.bounds
        wire = self.to_layout(self.allowed(low + unit.astype(np.float32) * (high - low)))
        whole = np.rint(wire).clip(0, 255) if self.dtype == np.uint8 else wire
        return np.ascontiguousarray(whole.astype(self.dtype))

    def allowed(self, wire: NDArray[Any]) -> NDArray[np.float32]:
        """Return the nearest wire values [item, feature] that the features may have; as they are without features."""
        if not self.features:
            return np.asarray(wire, dtype=np.float32)
        columns = [feature.nearest(wire[:, place]) for place, feature in enumerate(self.features)]
        return np.stack(columns, axis=1).astype(np.float32)
