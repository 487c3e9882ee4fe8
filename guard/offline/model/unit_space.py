"""Conversion between wire values and [0, 1], the same as `ValueBox`'s, in torch, where it becomes part of a program."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from guard.axes import from_wire, to_wire
from guard.features import Feature
from guard.value_box import ValueBox

WIRE_TYPES = {"float16": torch.float16, "float64": torch.float64}


def unit_of(wire: Tensor, box: ValueBox) -> Tensor:
    """Convert wire inputs to [0, 1] per channel, channel first."""
    if box.dtype != np.float32:
        wire = wire.to(torch.float32)
    if box.is_turned:
        wire = wire.permute(from_wire(box.layout, box.axes + 1))
    if box.is_unit:
        return wire
    low, high = bounds(box)
    return (wire - low) / (high - low)


def wire_of(unit: Tensor, box: ValueBox) -> Tensor:
    """Convert [0, 1] per channel, channel first, to wire inputs; whole numbers where bytes travel."""
    wire = unit
    if not box.is_unit:
        low, high = bounds(box)
        wire = low + unit * (high - low)
    if box.features:
        wire = allowed(wire, box.features)
    if box.is_turned:
        wire = wire.permute(to_wire(box.layout, box.axes + 1))
    if box.dtype == np.float32:
        return wire
    return torch.round(wire).to(torch.uint8) if box.dtype == np.uint8 else wire.to(WIRE_TYPES[box.dtype.name])


def bounds(box: ValueBox) -> tuple[Tensor, Tensor]:
    """Return low and high, shaped so that they broadcast over an item, channels or features first."""
    low, high = box.bounds
    return torch.from_numpy(low), torch.from_numpy(high)


def unordered(features: Sequence[Feature]) -> Tensor | None:
    """Return which features are categories [feature], so that nothing lies between their values; None where none is."""
    found = [feature.is_category for feature in features]
    return torch.tensor(found) if any(found) else None


def untouched(wire: Tensor, features: Sequence[Feature]) -> Tensor:
    """Return which wire values [item, feature] no repair may move.

    They are categories, immutable features, and values beyond an open end, which unit space would cut.
    """
    fixed = torch.tensor([feature.is_category or feature.immutable for feature in features])
    if not any(feature.open_low or feature.open_high for feature in features):
        return fixed
    values = wire if wire.dtype == torch.float64 else wire.to(torch.float32)
    low, high = (torch.tensor(ends, dtype=values.dtype) for ends in zip(*map(open_ends, features), strict=True))
    return fixed | (values < low) | (values > high)


def open_ends(feature: Feature) -> tuple[float, float]:
    """Return between which wire values a feature is moved; an end that is not open is where nothing lies beyond."""
    return (feature.low if feature.open_low else -math.inf, feature.high if feature.open_high else math.inf)


def allowed(wire: Tensor, features: Sequence[Feature]) -> Tensor:
    """Return the nearest values [item, feature] that the features may have, as `ValueBox.allowed` does."""
    columns = [nearest(wire[:, place], feature) for place, feature in enumerate(features)]
    return torch.stack(columns, dim=1)


def nearest(values: Tensor, feature: Feature) -> Tensor:
    if feature.is_category:
        codes = torch.tensor(feature.categories, dtype=values.dtype)
        return codes[(values[:, None] - codes).abs().argmin(dim=1)]
    if feature.step is None:
        return values
    return feature.low + feature.step * torch.round((values - feature.low) / feature.step)
