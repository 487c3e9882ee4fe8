"""ONNX pooling, and the windows that convolutions share with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from guard.offline.model.onnx_import.graph_node import Node

AS_NUMBERS = "export it with pads as numbers"
# What a setting along one axis is along the height of an image of height 1.
ALONG_HEIGHT = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_shape": 1, "output_padding": 0}


@dataclass(frozen=True)
class Window:
    """A window that slides over an image [item, channel, height, width]; pairs are (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]  # padding above and on the left
    after: tuple[int, int]

    @property
    def even(self) -> bool:
        return self.before == self.after


def window(node: Node, image: Tensor, kernel: tuple[int, ...]) -> Window:
    """Read strides, dilations and padding from the node's attributes. Raises ModelError for what is no image."""
    if image.dim() != 4 or len(kernel) != 2:
        raise node.refuse(f"works on {image.dim() - 2} axes; only images are supported")
    stride = pair(node.get("strides", (1, 1)))
    dilation = pair(node.get("dilations", (1, 1)))
    top, left, bottom, right = node.get("pads", (0, 0, 0, 0))
    before, after = (top, left), (bottom, right)
    if node.get("auto_pad", "NOTSET").startswith("SAME"):
        before, after = same(node, image, kernel, stride, dilation)
    return Window(pair(kernel), stride, dilation, before, after)


def same(
    node: Node, image: Tensor, kernel: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the padding before and after under which there are ceil(size / stride) outputs along each axis.

    Of an odd number the larger half goes after the image with SAME_UPPER, else before it.
    """
    automatic = node.get("auto_pad")
    if dilation != (1, 1):
        why = "does not run for Conv" if node.kind == "Conv" else "counts otherwise than ONNX"
        raise node.refuse(f"pads by {automatic} with dilations, which ONNX Runtime {why}", AS_NUMBERS)
    small, large = [], []
    for size, length, step in zip(image.shape[2:], kernel, stride, strict=True):
        total = (-(-int(size) // step) - 1) * step + length - int(size)
        if total < -1:
            raise node.refuse(
                f"pads by {automatic} with strides beyond its kernel, where ONNX Runtime starts at other places",
                AS_NUMBERS,
            )
        total = max(0, total)
        small.append(total // 2)
        large.append(total - total // 2)
    sides = pair(small), pair(large)
    return sides if automatic == "SAME_UPPER" else sides[::-1]


def pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def padded(image: Tensor, view: Window, value: float) -> tuple[Tensor, tuple[int, int]]:
    """Return the image and the padding that is left for the operator: uneven padding is done at once."""
    if view.even:
        return image, view.before
    (top, left), (bottom, right) = view.before, view.after
    return functional.pad(image, (left, right, top, bottom), value=value), (0, 0)


def rounds_up(node: Node, image: Tensor, view: Window) -> bool:
    """Tell whether a pool covers the last places that its stride does not reach, too.

    Where padding is uneven torch cannot tell padding from image, and would keep windows that lie in padding alone.
    """
    if not node.get("ceil_mode", 0):
        return False
    for axis in (0, 1):
        length = int(image.shape[2 + axis]) + view.before[axis] + view.after[axis]
        span = view.dilation[axis] * (view.kernel[axis] - 1) + 1
        if not view.even and (length - span) % view.stride[axis]:
            raise node.refuse("rounds up the number of windows over uneven padding; only even padding is supported")
    return True


def as_image(node: Node) -> Node:
    """Return a node that works along one axis as one that works on an image of height 1."""
    changed = dict(node.attributes)
    for name, along_height in ALONG_HEIGHT.items():
        if name in changed:
            changed[name] = [along_height, *changed[name][-1:]]
    if "pads" in changed:
        before, after = changed["pads"]
        changed["pads"] = [0, before, 0, after]
    return replace(node, attributes=changed)


def along_one_axis(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make an operator on images work on [item, channel, place] too."""

    def run(node: Node, x: Tensor, *more: Tensor) -> Tensor:
        return function(as_image(node), x.unsqueeze(2), *more).squeeze(2) if x.dim() == 3 else function(node, x, *more)

    return run


def max_pool(node: Node, image: Tensor) -> Tensor:
    if len([name for name in node.outputs if name]) > 1:
        raise node.refuse("its indices are read")
    view = window(node, image, tuple(node.get("kernel_shape")))
    ceil = rounds_up(node, image, view)
    image, padding = padded(image, view, -torch.inf)
    return functional.max_pool2d(image, view.kernel, view.stride, padding, view.dilation, ceil_mode=ceil)


def average_pool(node: Node, image: Tensor) -> Tensor:
    """Average over windows; uneven padding: pool the padded image, over the share of each window that is image."""
    if image.dim() == 5:
        return average_along_depth(node, image)
    view = window(node, image, tuple(node.get("kernel_shape")))
    if view.dilation != (1, 1):
        raise node.refuse("has dilations")
    ceil, counted = rounds_up(node, image, view), bool(node.get("count_include_pad", 0))
    wide, padding = padded(image, view, 0.0)
    pooled = functional.avg_pool2d(wide, view.kernel, view.stride, padding, ceil, counted)
    if view.even or counted:
        return pooled
    ones, _ = padded(torch.ones(1, 1, int(image.shape[2]), int(image.shape[3])), view, 0.0)
    return pooled / functional.avg_pool2d(ones, view.kernel, view.stride, 0, ceil)


def average_along_depth(node: Node, image: Tensor) -> Tensor:
    """Average [item, channel, depth, height, width] along the depth: as torch writes local response normalisation."""
    kernel, strides = node.get("kernel_shape"), node.get("strides", (1, 1, 1))
    before, *above, after, below, right = node.get("pads", (0,) * 6)
    plain = node.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(d != 1 for d in node.get("dilations", ()))
    flat = kernel[1:] == [1, 1] and list(strides)[1:] == [1, 1] and not any((*above, below, right))
    if not plain or not flat or before != after:
        raise node.refuse("pools three axes, or one with dilations or padding on one side; only images are supported")
    settings = ((kernel[0], 1), (strides[0], 1), (before, 0), bool(node.get("ceil_mode", 0)))
    unit = torch.eye(int(image.shape[2]))[None, None]
    matrix = functional.avg_pool2d(unit, *settings, bool(node.get("count_include_pad", 0)))[0, 0]
    averaged: Tensor = torch.matmul(matrix, image.flatten(3)).unflatten(3, list(image.shape[3:]))
    return averaged


def response_norm(node: Node, image: Tensor) -> Tensor:
    """Divide by (bias + alpha / size * the sum of squares over `size` neighbouring channels) ** beta."""
    size, channels = int(node.get("size")), int(image.shape[1])
    before, after = (size - 1) // 2, size // 2
    place = torch.arange(channels)
    apart = place[None, :] - place[:, None]
    near = ((apart >= -before) & (apart <= after)).float()
    scaled = near * (node.get("alpha", 1e-4) / size)
    sums = functional.conv2d(image * image, scaled.reshape(channels, channels, 1, 1))
    return image / torch.pow(sums + node.get("bias", 1.0), node.get("beta", 0.75))


def global_average(_node: Node, image: Tensor) -> Tensor:
    return image.mean(list(range(2, image.dim())), keepdim=True)


def global_max(node: Node, image: Tensor) -> Tensor:
    if image.dim() != 4:
        raise node.refuse(f"works on {image.dim() - 2} axes; only images are supported")
    return functional.max_pool2d(image, (int(image.shape[2]), int(image.shape[3])))


POOLS: dict[str, Any] = {
    "AveragePool": along_one_axis(average_pool),
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": along_one_axis(global_max),
    "LRN": response_norm,
    "MaxPool": along_one_axis(max_pool),
}
