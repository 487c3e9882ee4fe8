"""Adjoints of operators that are one fixed matrix along the height and one along the width: average pools, resizing.

output = rows @ image @ columns^T, so the gradient comes back as rows^T @ gradient @ columns. The two matrices are read
off the operator itself, so that padding, ceil_mode, uneven windows, align_corners and the rest are right by
construction. Equal windows side by side, the whole image as one of them included, need no matrices.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from guard.offline.model.gradient.tape import Rule, Sent, Tape
from guard.offline.model.graph.separable import matrices
from guard.offline.model.graph.shapes import static

aten = torch.ops.aten


def separable(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    image = node.args[0]
    if not isinstance(image, fx.Node):
        return
    height, width = static(image, 2, 3)
    rows, columns = matrices(node.target, height, width, *node.args[1:], **node.kwargs)
    down, across = _tiles(rows), _tiles(columns)
    if down and across:
        yield image, tape.call(spread, gradient, float(rows[0, 0] * columns[0, 0]), (down, across))
        return
    left, right = tape.constant(f"{node.name}_rows", rows.T), tape.constant(f"{node.name}_columns", columns)
    yield image, tape.call(sandwich, gradient, left, right)


def _tiles(matrix: Tensor) -> int:
    """Return the length of the equal windows that lie side by side and cover everything, or 0 where they do not."""
    outputs, inputs = matrix.shape
    length = inputs // outputs
    if length * outputs != inputs:
        return 0
    tiled = torch.eye(outputs).repeat_interleave(length, dim=1) * matrix[0, 0]
    return length if torch.equal(tiled, matrix) else 0


def spread(gradient: Tensor, weight: float, tiles: tuple[int, int]) -> Tensor:
    """Give each pixel of a window the same share of the window's gradient."""
    share = gradient * weight
    if gradient.shape[2] == gradient.shape[3] == 1:
        return share.expand(-1, -1, *tiles)
    return torch.nn.functional.interpolate(share, scale_factor=tiles, mode="nearest")


def sandwich(gradient: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.matmul(torch.matmul(left, gradient), right)


RULES: Mapping[OpOverload, Rule] = {
    aten.avg_pool2d.default: separable,
    aten.adaptive_avg_pool2d.default: separable,
    aten._adaptive_avg_pool2d.default: separable,
    aten.upsample_nearest2d.default: separable,
    aten.upsample_nearest2d.vec: separable,
    aten.upsample_bilinear2d.default: separable,
    aten.upsample_bilinear2d.vec: separable,
    aten.upsample_bicubic2d.default: separable,
    aten.upsample_bicubic2d.vec: separable,
}
