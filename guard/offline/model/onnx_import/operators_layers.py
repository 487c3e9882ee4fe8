"""ONNX operators with weights, and those that couple the numbers along an axis."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operators_pools import as_image, padded, window
from guard.offline.model.onnx_import.shape_arithmetic import is_symbol, whole

aten = torch.ops.aten


def convolution(node: Node, image: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if image.dim() == weight.dim() == 3:
        return convolution(as_image(node), image.unsqueeze(2), weight.unsqueeze(2), bias).squeeze(2)
    kernel = tuple(weight.shape[2:])
    if len(kernel) != 2:
        raise node.refuse(f"convolves over {len(kernel)} axes; only images are supported")
    view = window(node, image, kernel)
    image, padding = padded(image, view, 0.0)
    return functional.conv2d(image, weight, bias, view.stride, padding, view.dilation, node.get("group", 1))


def gemm(node: Node, left: Tensor, right: Tensor, shift: Tensor | None = None) -> Tensor:
    """Compute alpha * left right + beta * shift, as a linear layer."""
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    left = left.t() if node.get("transA", 0) else left
    weight = right if node.get("transB", 0) else right.t().contiguous()
    weight = weight if alpha == 1.0 else weight * alpha
    if shift is not None and beta != 1.0:
        shift = shift * beta
    if shift is None or shift.dim() == 1:
        return functional.linear(left, weight, shift)
    return functional.linear(left, weight) + shift


def product(_node: Node, left: Tensor, right: Tensor) -> Tensor:
    return torch.matmul(left, right)


def linear(_node: Node, left: Tensor, weight: Tensor) -> Tensor:
    """Compute a matrix product with a fixed matrix [feature in, feature out], as a linear layer."""
    return functional.linear(left, weight.t().contiguous())


def linear_number(_node: Node, left: Tensor, weight: Tensor) -> Tensor:
    """Compute a product with a fixed vector [feature in], as a linear layer of one number."""
    return functional.linear(left, weight.unsqueeze(0)).squeeze(-1)


def batch_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if node.get("training_mode", 0):
        raise node.refuse("uses the batch's own statistics; export the model in evaluation mode")
    return functional.batch_norm(x, mean, variance, scale, shift, eps=node.get("epsilon", 1e-5))


def layer_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    sizes = list(x.shape[node.get("axis", -1) :])
    return functional.layer_norm(
        x, sizes, scale.expand(sizes), None if shift is None else shift.expand(sizes), node.get("epsilon", 1e-5)
    )


def group_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute a group normalisation; before operator set 21 scale and shift came by group, from then on by channel."""
    groups = int(node.get("num_groups"))
    repeated = x.shape[1] // scale.shape[0]
    scale, shift = scale.repeat_interleave(repeated), shift.repeat_interleave(repeated)
    return functional.group_norm(x, groups, scale, shift, node.get("epsilon", 1e-5))


def instance_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return functional.group_norm(x, scale.shape[0], scale, shift, node.get("epsilon", 1e-5))


def softmax(node: Node, x: Tensor) -> Tensor:
    return along(node, x, torch.softmax)


def log_softmax(node: Node, x: Tensor) -> Tensor:
    return along(node, x, torch.log_softmax)


def along(node: Node, x: Tensor, function: Any) -> Tensor:
    """Apply a softmax along an axis; before operator set 13 all axes from the named one on were one."""
    rank = x.dim()
    axis = int(node.get("axis", -1 if node.opset >= 13 else 1)) % rank
    if node.opset >= 13 or axis == rank - 1:
        return function(x, dim=axis)  # type: ignore[no-any-return]
    return function(x.flatten(axis), dim=-1).unflatten(axis, x.shape[axis:])  # type: ignore[no-any-return]


def attention(node: Node, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute attention of [item, head, position, feature] each, without a cache."""
    if query.dim() != 4 or node.get("softcap", 0.0) or node.get("qk_matmul_output_mode", 0):
        raise node.refuse("is supported on [item, head, position, feature], without a soft cap or further outputs")
    causal, scale = bool(node.get("is_causal", 0)), node.get("scale")
    return functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scale)


def axes_of(node: Node, x: Tensor, given: Any) -> list[int]:
    """Return the axes of a reduction, counted from 0; all of them where none is named."""
    named = node.get("axes") if given is None else given
    if named is None or len(named) == 0:
        return [] if node.get("noop_with_empty_axes", 0) else list(range(x.dim()))
    return sorted(axis % x.dim() for axis in whole(named))


def mean(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    found = axes_of(node, x, axes)
    return x.mean(found, keepdim=bool(node.get("keepdims", 1))) if found else x


def total(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    found = axes_of(node, x, axes)
    return x.sum(found, keepdim=bool(node.get("keepdims", 1))) if found else x


def length(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    return torch.sqrt(total(node, x * x, axes))


def squares(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    return total(node, x * x, axes)


def maximum(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    """Compute a maximum as a max-pool, whose gradient goes to the first of equal maxima as everywhere here."""
    found = axes_of(node, x, axes)
    others = [axis for axis in range(x.dim()) if axis not in found]
    span = math.prod(int(x.shape[axis]) for axis in found)
    kept = [-1 if is_symbol(x.shape[axis]) else int(x.shape[axis]) for axis in others]
    rows = x.permute(*others, *found).reshape(-1, 1, 1, span)
    top = functional.max_pool2d(rows, (1, span)).reshape(kept)
    if node.get("keepdims", 1):
        for axis in found:
            top = top.unsqueeze(axis)
    return top


def minimum(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    return -maximum(node, -x, axes)


def magnitudes(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    return total(node, torch.abs(x), axes)


def log_sum(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    return torch.log(total(node, x, axes))


def log_sum_exp(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    """Compute log(sum(exp(x))), with the largest of each sum taken out of it, so that none overflows."""
    found = axes_of(node, x, axes)
    if not found:
        return x
    top = maximum(replace(node, attributes={**node.attributes, "keepdims": 1}), x, axes).detach()
    sums = torch.log(torch.exp(x - top).sum(found, keepdim=True)) + top
    return sums if node.get("keepdims", 1) else sums.squeeze(found)


def product_along(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    """Compute a product of all numbers along axes, halves times halves."""
    found = axes_of(node, x, axes)
    for axis in found:
        while (length := int(x.shape[axis])) > 1:
            half = length // 2
            pairs = aten.slice.Tensor(x, axis, 0, half) * aten.slice.Tensor(x, axis, half, 2 * half)
            x = torch.cat([pairs, aten.slice.Tensor(x, axis, 2 * half, length)], axis) if length % 2 else pairs
    return x if node.get("keepdims", 1) else x.squeeze(found)


def running_sum(node: Node, x: Tensor, axis: Any) -> Tensor:
    """Compute sums of all numbers up to each along an axis, as a product with a triangle of ones."""
    (place,) = axes_of(node, x, np.ravel(axis))
    if is_symbol(x.shape[place]):
        raise node.refuse("sums up over the items of a batch", "export the model in evaluation mode")
    length = int(x.shape[place])
    triangle = torch.ones(length, length).tril(-1 if node.get("exclusive", 0) else 0)
    triangle = triangle if node.get("reverse", 0) else triangle.t()
    return torch.matmul(x.transpose(place, -1), triangle.contiguous()).transpose(place, -1)


def argmax(node: Node, x: Tensor) -> Tensor:
    if node.get("select_last_index", 0):
        raise node.refuse("selects the last of equal maxima")
    return torch.argmax(x, int(node.get("axis", 0)), keepdim=bool(node.get("keepdims", 1)))


LAYERS: dict[str, Any] = {
    "ArgMax": argmax,
    "Attention": attention,
    "BatchNormalization": batch_norm,
    "Conv": convolution,
    "Gemm": gemm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "CumSum": running_sum,
    "LogSoftmax": log_softmax,
    "MatMul": product,
    "ReduceL1": magnitudes,
    "ReduceL2": length,
    "ReduceLogSum": log_sum,
    "ReduceLogSumExp": log_sum_exp,
    "ReduceMax": maximum,
    "ReduceMean": mean,
    "ReduceMin": minimum,
    "ReduceProd": product_along,
    "ReduceSum": total,
    "ReduceSumSquare": squares,
    "Softmax": softmax,
}
