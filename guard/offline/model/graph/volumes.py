"""Decompositions of operators along three axes, into the same operators over planes.

Rule 1: a window over a volume is one over its planes and one along its depth: each is a matrix along its own axis.
Example: torch writes LocalResponseNorm as an average over channels, avg_pool3d with the kernel [4, 1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from guard.errors import ModelError
from guard.offline.model.graph.decompositions import average_pool
from guard.offline.model.graph.shapes import shape, static
from guard.offline.model.graph.writer import GraphWriter

aten = torch.ops.aten


def three(setting: Any) -> list[int]:
    """Return a setting along depth, height and width: one number stands for all three."""
    values = [int(value) for value in setting] if isinstance(setting, Sequence) else [int(setting)]
    return values * 3 if len(values) == 1 else values


def avg_pool3d(
    writer: GraphWriter,
    volume: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: Any = 0,
    counted: Any = 1,
    divisor: int | None = None,
) -> Any:
    """Write an average over windows of a volume [item, channel, depth, height, width] as two average pools.

    Raises: ModelError for a divisor of its own, and for a volume without items.
    """
    if divisor is not None or len(shape(volume)) != 5:
        raise ModelError("an average pool over volumes has a plain form with items, and without a divisor of its own")
    window, steps, sides = three(kernel), three(stride or kernel), three(padding)
    channels, depth, height, width = static(volume, 1, 2, 3, 4)
    rest = (bool(ceil_mode), bool(counted))
    if (window[1:], steps[1:], sides[1:]) != ([1, 1], [1, 1], [0, 0]):
        planes = writer.call(aten.reshape.default, volume, [-1, channels * depth, height, width])
        planes = average_pool(writer, planes, window[1:], steps[1:], sides[1:], *rest)
        height, width = static(planes, 2, 3)
        volume = planes
    lines = writer.call(aten.reshape.default, volume, [-1, channels, depth, height * width])
    lines = average_pool(writer, lines, [window[0], 1], [steps[0], 1], [sides[0], 0], *rest)
    (depth,) = static(lines, 2)
    return writer.call(aten.reshape.default, lines, [-1, channels, depth, height, width])


VOLUMES: Mapping[OpOverload, Callable[..., Any]] = {aten.avg_pool3d.default: avg_pool3d}
