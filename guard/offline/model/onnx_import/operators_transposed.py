"""ONNX operators that lay windows over each other and add them up: ConvTranspose, Col2Im.

Rule 1. A transposed convolution is a convolution of the image with zeros between its places, by the turned kernel.
Example: of 1, 2 with stride 2 and kernel a, b it is 1a, 1b, 2a, 2b: the kernel b, a over 0, 1, 0, 2, 0.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operators_places import looked_up
from guard.offline.model.onnx_import.operators_pools import as_image, pair
from guard.offline.model.onnx_import.shape_arithmetic import whole

aten = torch.ops.aten


def transposed_convolution(node: Node, image: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute what a convolution by `weight` [channel in, channel out of a group, ...] sends back."""
    if image.dim() == weight.dim() == 3:
        return transposed_convolution(as_image(node), image.unsqueeze(2), weight.unsqueeze(2), bias).squeeze(2)
    kernel = tuple(int(size) for size in weight.shape[2:])
    if len(kernel) != 2 or image.dim() != 4:
        raise node.refuse(f"spreads over {image.dim() - 2} axes; only images and series are supported")
    stride, dilation = pair(node.get("strides", (1, 1))), pair(node.get("dilations", (1, 1)))
    before, after = cropped(node, image, kernel, stride, dilation)
    groups = node.get("group", 1)
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
    reach = [(length - 1) * step for length, step in zip(kernel, dilation, strict=True)]
    sides = [side for axis in (1, 0) for side in (reach[axis] - before[axis], reach[axis] - after[axis])]
    stuffed = functional.pad(with_zeros_between(image, stride), sides)
    return functional.conv2d(stuffed, turned, bias, 1, 0, dilation, groups)


def cropped(
    node: Node, image: Tensor, kernel: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Return how much is cut off before and after along each axis; below 0 where zeros are put there instead."""
    sizes = [int(size) for size in image.shape[2:]]
    more = node.get("output_padding", (0, 0))
    full = [
        step * (size - 1) + (length - 1) * wide + 1 + extra
        for size, length, step, wide, extra in zip(sizes, kernel, stride, dilation, more, strict=True)
    ]
    automatic = node.get("auto_pad", "NOTSET")
    wanted = node.get("output_shape")
    if wanted is None and automatic.startswith("SAME"):
        # ONNX's text has every size times its stride; what no window reaches ONNX Runtime leaves out.
        wanted = [min(size * step, reached) for size, step, reached in zip(sizes, stride, full, strict=True)]
    if wanted is None:
        top, left, bottom, right = node.get("pads", (0, 0, 0, 0)) if automatic != "VALID" else (0, 0, 0, 0)
        before, after = [top, left], [bottom, right]
    else:
        total = [a - int(b) for a, b in zip(full, whole(wanted)[-2:], strict=True)]
        extra, missing = ([part(size, 0) for size in total] for part in (max, min))
        small, large = [size // 2 for size in extra], [size - size // 2 for size in extra]
        before, after = (small, large) if automatic == "SAME_UPPER" else (large, small)
        after = [cut + beyond for cut, beyond in zip(after, missing, strict=True)]  # zeros where no window reaches
    return before, [cut - zeros for cut, zeros in zip(after, more, strict=True)]


def with_zeros_between(image: Tensor, stride: tuple[int, int]) -> Tensor:
    """Return an image with stride - 1 zeros between its places, and none behind the last."""
    for axis, step in zip((2, 3), stride, strict=True):
        if step > 1:
            size = int(image.shape[axis])
            wide = functional.pad(image.unsqueeze(axis + 1), [0, 0] * (3 - axis) + [0, step - 1])
            image = aten.slice.Tensor(wide.flatten(axis, axis + 1), axis, 0, (size - 1) * step + 1)
    return image


def windows_added(node: Node, columns: Tensor, image_sizes: Any, block: Any) -> Tensor:
    """Add up windows [item, (channel, place of the window), window], each at its own place of an image."""
    sizes, kernel = whole(image_sizes), whole(block)
    axes = len(sizes)
    stride, dilation = node.get("strides", [1] * axes), node.get("dilations", [1] * axes)
    pads = node.get("pads", [0] * (2 * axes))
    reach = [(length - 1) * wide + 1 for length, wide in zip(kernel, dilation, strict=True)]
    counts = [
        (size + pads[axis] + pads[axes + axis] - reach[axis]) // stride[axis] + 1 for axis, size in enumerate(sizes)
    ]
    windows, spot = math.prod(counts), math.prod(kernel)
    parts = functional.pad(columns, (0, 1)).unflatten(1, (-1, spot))  # a window of zeros behind the others
    total: Tensor | None = None
    for place, offset in enumerate(itertools.product(*map(range, kernel))):
        found = np.zeros(sizes, np.int64)
        inside = np.ones(sizes, bool)
        for axis, along in enumerate(np.indices(sizes)):
            number, rest = np.divmod(along + pads[axis] - offset[axis] * dilation[axis], stride[axis])
            inside &= (rest == 0) & (number >= 0) & (number < counts[axis])
            found = found * counts[axis] + number
        if inside.any():
            one = looked_up(parts.select(2, place), 2, np.where(inside, found, windows).ravel().tolist())
            total = one if total is None else total + one
    if total is None:
        raise node.refuse("adds up no window at all")
    added: Tensor = total.unflatten(2, sizes)
    return added


TRANSPOSED: dict[str, Any] = {"ConvTranspose": transposed_convolution, "Col2Im": windows_added}
