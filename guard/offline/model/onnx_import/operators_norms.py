"""ONNX operators that give a norm of many numbers or divide by one, without weights.

Rule 1. A norm of zeros is 0 and passes no gradient on: the root of 0 has none that is finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operators_pools import Window, along_one_axis, window

STANDARD_DEVIATION_SHIFT = 1e-9  # by which MeanVarianceNormalization keeps from dividing by 0


def powers(x: Tensor, order: int) -> Tensor:
    """Return |x| to a power."""
    if order == 1:
        return torch.abs(x)
    return x * x if order == 2 else torch.pow(torch.abs(x), float(order))


def root(total: Tensor, order: int) -> Tensor:
    """Return the root of numbers that are not below 0."""
    if order == 1:
        return total
    positive = total > 0
    safe = torch.where(positive, total, torch.ones_like(total))
    found = torch.sqrt(safe) if order == 2 else torch.pow(safe, 1.0 / order)
    return torch.where(positive, found, torch.zeros_like(total))


def normalised(node: Node, x: Tensor) -> Tensor:
    """Divide by the norm along an axis; numbers that are all 0 stay so."""
    order = int(node.get("p", 2))
    norm = root(powers(x, order).sum([int(node.get("axis", -1))], keepdim=True), order)
    return x / torch.where(norm > 0, norm, torch.ones_like(norm))


def standardised(node: Node, x: Tensor) -> Tensor:
    """Take the mean away and divide by the standard deviation, both over the node's axes."""
    axes = [int(axis) % x.dim() for axis in node.get("axes", (0, 2, 3))]
    if 0 in axes:
        raise node.refuse(
            "normalises over the items of a batch", "export the model in evaluation mode, or with axes [2, 3]"
        )
    centred = x - x.mean(axes, keepdim=True)
    return centred / (root((centred * centred).mean(axes, keepdim=True), 2) + STANDARD_DEVIATION_SHIFT)


def norm_pool(node: Node, image: Tensor) -> Tensor:
    """Return the norm of each window; what is beyond the image counts as 0."""
    order, channels = int(node.get("p", 2)), int(image.shape[1])
    view = window(node, image, tuple(node.get("kernel_shape")))
    (top, left), (bottom, right) = view.before, view.after
    below, beside = (left_over(view, axis, int(image.shape[2 + axis])) for axis in (0, 1))
    if not node.get("ceil_mode", 0):
        below = beside = 0
    wide = functional.pad(powers(image, order), (left, right + beside, top, bottom + below))
    ones = torch.ones(channels, 1, *view.kernel)
    return root(functional.conv2d(wide, ones, None, view.stride, 0, view.dilation, channels), order)


def left_over(view: Window, axis: int, size: int) -> int:
    """Return how far the last window of a pool that rounds up reaches beyond the padded image, if it begins in it."""
    before, step = view.before[axis], view.stride[axis]
    beyond = size + before + view.after[axis] - view.dilation[axis] * (view.kernel[axis] - 1) - 1
    start = -(-beyond // step) * step
    return start - beyond if start < size + before else 0


def global_norm(node: Node, image: Tensor) -> Tensor:
    """Return the norm of each channel."""
    order = int(node.get("p", 2))
    return root(powers(image, order).sum(list(range(2, image.dim())), keepdim=True), order)


NORMS: dict[str, Any] = {
    "GlobalLpPool": global_norm,
    "LpNormalization": normalised,
    "LpPool": along_one_axis(norm_pool),
    "MeanVarianceNormalization": standardised,
}
