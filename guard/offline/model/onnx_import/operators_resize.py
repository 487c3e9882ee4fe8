"""ONNX operators that resize an image or a series along any axes but the batch: Resize, Upsample.

Rule 1. Where torch has the same resize it is used; else each axis is a product with a fixed matrix, or a look-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operators_places import looked_up
from guard.offline.model.onnx_import.resize_matrix import Rule, Stretch, is_outside, matrix, nearest_places
from guard.offline.model.onnx_import.shape_arithmetic import is_symbol, whole

BATCH = "the batch among them"
TORCH_MODES = {"linear": "bilinear", "cubic": "bicubic"}
TORCH_PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners")
Stretches = Mapping[int, Stretch]  # by axis, those that change


def resize(node: Node, image: Tensor, region: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    """Resize the axes that change by the node's rule."""
    if node.opset == 10:
        region, scales = None, region  # the region came with operator set 11, in front of the scales
    if sizes is not None and len(sizes):
        found = to_sizes(node, image, sizes)
    else:
        found = by_factors(node, image, node.get("scales") if scales is None else scales)
    rule = rule_of(node)
    if rule.places == "tf_crop_and_resize" and region is not None and len(region):
        found = cropped(node, image, found, region)
    moved = {axis: stretch for axis, stretch in sorted(found.items()) if stretch.moves}
    if 0 in moved:
        raise node.refuse("resizes the batch axis")
    as_torch = by_torch(image, moved, rule)
    return along_each(node, image, moved, rule) if as_torch is None else as_torch


def rule_of(node: Node) -> Rule:
    """Read the rule from the attributes; before operator set 11 there was one for places, and none for rounding."""
    mode = node.get("mode", "nearest")
    if node.opset < 11:
        return Rule(mode, "asymmetric", "by_factor")
    return Rule(
        mode,
        node.get("coordinate_transformation_mode", "half_pixel"),
        node.get("nearest_mode", "round_prefer_floor"),
        float(node.get("cubic_coeff_a", -0.75)),
        bool(node.get("exclude_outside", 0)),
        bool(node.get("antialias", 0)),
    )


def axes_of(node: Node, image: Tensor) -> list[int]:
    return [int(axis) % image.dim() for axis in node.get("axes", range(image.dim()))]


def to_sizes(node: Node, image: Tensor, sizes: Any) -> Stretches:
    """Return what becomes of each axis in a resize to `sizes`; that of the batch is the batch's own."""
    axes, policy = axes_of(node, image), node.get("keep_aspect_ratio_policy", "stretch")
    wanted = {axis: size for axis, size in zip(axes, whole(sizes), strict=True) if axis > 0}
    if any(is_symbol(size) for size in wanted.values()):
        raise node.refuse("resizes to the number of items")
    if policy != "stretch":
        if 0 in axes:
            raise node.refuse(f"keeps the ratio of all axes, {BATCH}", "name height and width in its axes")
        return in_ratio(image, wanted, larger=policy == "not_smaller")
    return {
        axis: Stretch(int(image.shape[axis]), size, np.float32(size) / np.float32(int(image.shape[axis])))
        for axis, size in wanted.items()
    }


def in_ratio(image: Tensor, wanted: Mapping[int, int], *, larger: bool) -> Stretches:
    """Return axes that all change by the smallest or largest factor that their wanted sizes ask for."""
    lengths = {axis: np.float32(int(image.shape[axis])) for axis in wanted}
    factors = [np.float32(size) / lengths[axis] for axis, size in wanted.items()]
    factor = max(factors) if larger else min(factors)
    return {
        axis: Stretch(int(length), int(np.floor(factor * length + np.float32(0.5))), factor)
        for axis, length in lengths.items()
    }


def by_factors(node: Node, image: Tensor, scales: Any) -> Stretches:
    """Return what becomes of each axis in a resize by factors, of which a length is rounded down."""
    factors = dict(zip(axes_of(node, image), np.ravel(scales).astype(np.float32), strict=True))
    if factors.pop(0, 1) != 1:
        raise node.refuse("resizes the batch axis")
    found = {}
    for axis, factor in factors.items():
        before = int(image.shape[axis])
        after = int(np.float32(before) * factor)
        if after < 1:
            raise node.refuse(f"resizes an axis of {before} by {float(factor):g}, to nothing")
        found[axis] = Stretch(before, after, factor)
    return found


def cropped(node: Node, image: Tensor, found: Stretches, region: Any) -> Stretches:
    """Return the axes with the part of each that is read: starts, then ends, as shares of its length."""
    axes = axes_of(node, image)
    limits = np.ravel(region).astype(np.float32)
    starts, ends = (dict(zip(axes, part, strict=True)) for part in (limits[: len(axes)], limits[len(axes) :]))
    return {axis: replace(stretch, start=starts[axis], end=ends[axis]) for axis, stretch in found.items()}


def by_torch(image: Tensor, moved: Stretches, rule: Rule) -> Tensor | None:
    """Resize height and width, or a series, by torch's own operator; None where it would place or weigh otherwise."""
    places = image.dim() - 2
    if places not in (1, 2) or not moved or min(moved) < 2:
        return None
    mode = torch_mode(moved, rule)
    if mode is None:
        return None
    after = [moved[axis].after if axis in moved else int(image.shape[axis]) for axis in range(2, image.dim())]
    corners = None if mode == "nearest" else rule.places == "align_corners"
    if places == 1:
        return functional.interpolate(image.unsqueeze(2), [1, *after], mode=mode, align_corners=corners).squeeze(2)
    return functional.interpolate(image, after, mode=mode, align_corners=corners)


def torch_mode(moved: Stretches, rule: Rule) -> str | None:
    """Return torch's name for a resize that it does in the same way; it knows no factors, only sizes."""
    exact = all(stretch.factor == np.float32(stretch.after / stretch.before) for stretch in moved.values())
    repeats = all(stretch.after % stretch.before == 0 for stretch in moved.values())
    if rule.mode == "nearest":
        halves = rule.places.endswith("half_pixel") and rule.rounding.startswith("round_prefer")
        floors = rule.places == "asymmetric" and rule.rounding in ("floor", "by_factor")
        return "nearest" if exact and repeats and (halves or floors) else None
    to_one = rule.places == "pytorch_half_pixel" and any(stretch.after == 1 for stretch in moved.values())
    if rule.places not in TORCH_PLACES or rule.antialias or rule.exclude_outside or to_one:
        return None
    if not exact and rule.places != "align_corners":
        return None
    return TORCH_MODES[rule.mode] if rule.mode == "linear" or rule.cubic_coefficient == -0.75 else None


def along_each(node: Node, image: Tensor, moved: Stretches, rule: Rule) -> Tensor:
    """Resize one axis after the other, and write the node's value where any of them lies beyond the image."""
    outside: Tensor | None = None
    for axis, stretch in moved.items():
        if rule.mode == "nearest":
            image = looked_up(image, axis, nearest_places(stretch, rule).tolist())
        else:
            image = multiplied(image, axis, torch.from_numpy(matrix(stretch, rule).astype(np.float32)))
        beyond = is_outside(stretch, rule)
        if beyond.any():
            mask = torch.from_numpy(beyond).reshape([-1] + [1] * (image.dim() - 1 - axis))
            outside = mask if outside is None else torch.logical_or(outside, mask)
    if outside is None:
        return image
    value = float(node.get("extrapolation_value", 0.0))
    return torch.where(outside, torch.full((1,), value), image)


def multiplied(image: Tensor, axis: int, rows: Tensor) -> Tensor:
    """Return an image whose places along an axis are those before it, times a matrix [after, before]."""
    if axis == image.dim() - 2:
        return torch.matmul(rows, image)
    if axis == image.dim() - 1:
        return torch.matmul(image, rows.t().contiguous())
    return torch.matmul(image.transpose(axis, -1), rows.t().contiguous()).transpose(axis, -1)


RESIZES: dict[str, Any] = {
    "Resize": resize,
    "Upsample": lambda node, image, scales=None: resize(node, image, None, scales),
}
