"""The adjoint of a max-pool, by slices and comparisons, without indices and without a scatter.

Rule 1. Of equal maxima the first in row-major order gets the whole gradient, as torch routes it. Padding never wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.nn.functional import pad

from guard.offline.model.gradient.rules.convolution import weave
from guard.offline.model.gradient.tape import Rule, Sent, Tape
from guard.offline.model.graph.shapes import pair, static

aten = torch.ops.aten


def max_pool(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradient through max_pool2d(image, kernel, stride, padding, dilation, ceil_mode)."""
    image, *settings = node.args
    if not isinstance(image, fx.Node):
        return
    kernel, stride, padding, dilation = window(*settings)
    sizes, outputs = static(image, 2, 3), static(node, 2, 3)
    yield image, tape.call(unpool, gradient, node, image, sizes, outputs, kernel, stride, padding, dilation)


def window(kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any) -> tuple[tuple[int, int], ...]:
    return pair(kernel), pair(stride or kernel), pair(padding), pair(dilation)


def unpool(
    gradient: Tensor,
    output: Tensor,
    image: Tensor,
    sizes: tuple[int, int],
    outputs: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Route each window's gradient to the first pixel that equals the window's maximum."""
    ends = [stride[axis] * (outputs[axis] - 1) + dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    beyond = [max(0, ends[axis] - padding[axis] - sizes[axis]) for axis in (0, 1)]
    padded = pad(image, (padding[1], beyond[1], padding[0], beyond[0]), value=-torch.inf)
    # A padded pixel belongs to phase (row % stride, column % stride) of cell (row // stride, column // stride).
    cells = [-(-(sizes[axis] + padding[axis]) // stride[axis]) for axis in (0, 1)]
    phases: dict[tuple[int, int], Tensor] = {}
    left = gradient  # what no pixel has taken yet
    for tap_row in range(0, dilation[0] * kernel[0], dilation[0]):
        for tap_column in range(0, dilation[1] * kernel[1], dilation[1]):
            seen = padded[
                :,
                :,
                tap_row : tap_row + stride[0] * (outputs[0] - 1) + 1 : stride[0],
                tap_column : tap_column + stride[1] * (outputs[1] - 1) + 1 : stride[1],
            ]
            taken = torch.where(seen == output, left, 0.0)
            left = left - taken
            (down, row), (across, column) = divmod(tap_row, stride[0]), divmod(tap_column, stride[1])
            placed = pad(taken, (across, cells[1] - outputs[1] - across, down, cells[0] - outputs[0] - down))
            phases[row, column] = phases[row, column] + placed if (row, column) in phases else placed
    nothing = torch.zeros_like(placed)
    parts = [phases.get((row, column), nothing) for row in range(stride[0]) for column in range(stride[1])]
    whole = weave(torch.stack(parts, 2).flatten(1, 2), stride, (sizes[0] + padding[0], sizes[1] + padding[1]))
    return whole[:, :, padding[0] :, padding[1] :]


RULES: Mapping[OpOverload, Rule] = {aten.max_pool2d.default: max_pool}
