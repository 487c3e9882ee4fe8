"""ONNX pooling and resizing, and the windows that convolutions share with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.shape_arithmetic import whole


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
        raise node.refuse(f"pads by {automatic} with dilations, which ONNX and ONNX Runtime count differently")
    small, large = [], []
    for size, length, step in zip(image.shape[2:], kernel, stride, strict=True):
        total = (-(-int(size) // step) - 1) * step + length - int(size)
        if total < -1:
            raise node.refuse(
                f"pads by {automatic} with strides beyond its kernel, where ONNX Runtime starts at other places",
                "export it with pads as numbers",
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
    for name in {"kernel_shape", "strides", "dilations"}.intersection(changed):
        changed[name] = [1, *changed[name]]
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


def resize(node: Node, image: Tensor, region: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    """Resize height and width in the ways that torch has too: nearest, linear and cubic."""
    if image.dim() != 4:
        raise node.refuse("resizes other axes than height and width")
    mode, places = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    if node.opset < 11:
        places = "asymmetric"
    if node.opset == 10:
        scales = region  # the region came with operator set 11, in front of the scales
    if node.get("antialias", 0):
        raise node.refuse("smooths before it shrinks")
    before = [int(size) for size in image.shape[2:]]
    if sizes is not None and len(sizes):
        after = wanted_sizes(node, image, sizes)
    else:
        after = scaled_sizes(node, before, scales, exact=places != "align_corners")
    if places == "pytorch_half_pixel" and any(large == 1 != small for small, large in zip(before, after, strict=True)):
        raise node.refuse(
            "shrinks an axis to one place, which pytorch_half_pixel takes from its edge and torch does not"
        )
    match mode:
        case "nearest":
            return nearest(node, image, after, places)
        case "linear" | "cubic" if places in ("half_pixel", "pytorch_half_pixel", "align_corners"):
            if mode == "cubic" and (node.get("cubic_coeff_a", -0.75) != -0.75 or node.get("exclude_outside", 0)):
                raise node.refuse("is cubic with another coefficient than torch's")
            kind = "bilinear" if mode == "linear" else "bicubic"
            return functional.interpolate(image, after, mode=kind, align_corners=places == "align_corners")
    raise node.refuse(f"{mode} with {places} has no torch form")


def nearest(node: Node, image: Tensor, after: list[int], places: str) -> Tensor:
    """Repeat or drop rows and columns; torch takes floor(place * before / after), and so must the node."""
    before = [int(size) for size in image.shape[2:]]
    rounding = node.get("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor")
    if node.opset == 10 and any(large < small for small, large in zip(before, after, strict=True)):
        raise node.refuse("shrinks to the nearest place by the rules of operator set 10, which torch does not have")
    multiple = all(large % small == 0 for small, large in zip(before, after, strict=True))
    repeated = multiple and places.endswith("half_pixel") and rounding.startswith("round_prefer")
    if not (repeated or (places, rounding) == ("asymmetric", "floor")):
        raise node.refuse(f"nearest with {places} and {rounding} has no torch form")
    return functional.interpolate(image, after, mode="nearest")


def resized_axes(node: Node) -> list[int]:
    return [int(axis) % 4 for axis in node.get("axes", range(4))]


def wanted_sizes(node: Node, image: Tensor, sizes: Any) -> list[int]:
    """Return height and width after a resize to `sizes`. Raises ModelError where channels change."""
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse("keeps the ratio of height and width")
    wanted = dict(zip(resized_axes(node), whole(sizes), strict=True))
    if wanted.get(1, int(image.shape[1])) != int(image.shape[1]):
        raise node.refuse("resizes other axes than height and width")
    return [int(wanted.get(axis, image.shape[axis])) for axis in (2, 3)]


def scaled_sizes(node: Node, before: list[int], scales: Any, *, exact: bool) -> list[int]:
    """Return height and width after a resize by factors; with `exact` one that gives no whole size is refused.

    ONNX then places by the factor, torch by the sizes: 4 rows by 1.4 are 5, which torch takes for a factor of 1.25.
    """
    given = np.ravel(node.get("scales") if scales is None else scales).astype(np.float32)
    factors = dict(zip(resized_axes(node), given, strict=True))
    if any(factors.get(axis, 1) != 1 for axis in (0, 1)):
        raise node.refuse("resizes other axes than height and width")
    products = [np.float32(size) * factors.get(axis, np.float32(1)) for axis, size in zip((2, 3), before, strict=True)]
    if any(product < 1 or (exact and product != np.floor(product)) for product in products):
        raise node.refuse(f"resizes {before} by {[float(factors.get(axis, 1)) for axis in (2, 3)]}: to no whole sizes")
    return [int(product) for product in products]


POOLS: dict[str, Any] = {
    "AveragePool": along_one_axis(average_pool),
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": along_one_axis(global_max),
    "LRN": response_norm,
    "MaxPool": along_one_axis(max_pool),
    "Resize": resize,
    "Upsample": lambda node, image, scales=None: resize(node, image, None, scales),
}
