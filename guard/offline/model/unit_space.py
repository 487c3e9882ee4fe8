"""Conversion between wire values and [0, 1], the same as `ValueBox`'s, in torch, where it becomes part of a program."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from guard.value_box import ValueBox

WIRE_TYPES = {"float16": torch.float16, "float64": torch.float64}


def unit_of(wire: Tensor, box: ValueBox) -> Tensor:
    """Convert wire inputs to [0, 1] per channel, channel first."""
    if box.dtype != np.float32:
        wire = wire.to(torch.float32)
    if box.layout == "NHWC":
        wire = wire.permute(0, 3, 1, 2)
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
    if box.layout == "NHWC":
        wire = wire.permute(0, 2, 3, 1)
    if box.dtype == np.float32:
        return wire
    return torch.round(wire).to(torch.uint8) if box.dtype == np.uint8 else wire.to(WIRE_TYPES[box.dtype.name])


def bounds(box: ValueBox) -> tuple[Tensor, Tensor]:
    """Return low and high, shaped so that they broadcast over an item [channel, height, width] or [feature]."""
    low, high = box.bounds
    return torch.from_numpy(low), torch.from_numpy(high)
