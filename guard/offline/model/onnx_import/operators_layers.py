"""ONNX operators with weights, and those that couple the numbers along an axis."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operators_pools import as_image, padded, window
from guard.offline.model.onnx_import.shape_arithmetic import is_symbol, whole


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
    "LogSoftmax": log_softmax,
    "MatMul": product,
    "ReduceL2": length,
    "ReduceMax": maximum,
    "ReduceMean": mean,
    "ReduceMin": minimum,
    "ReduceSum": total,
    "ReduceSumSquare": squares,
    "Softmax": softmax,
}
