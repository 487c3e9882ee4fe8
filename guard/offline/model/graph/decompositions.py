"""Decompositions of operators: one function each, from an operator's arguments to its canonical form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from guard.errors import ModelError
from guard.offline.model.graph.dropouts import DROPPED, Dropout
from guard.offline.model.graph.separable import matrices
from guard.offline.model.graph.shapes import pair, shape, static
from guard.offline.model.graph.writer import GraphWriter

aten = torch.ops.aten
PADDINGS = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # what numpy calls torch's


def same(_pen: GraphWriter, operand: Any, *_: Any, **__: Any) -> Any:
    return operand


def dropout(writer: GraphWriter, operand: Any, share: float, training: Any) -> Any:
    """Leave out a dropout, and note at its operand what it did while the model learned."""
    if training and share > 0:
        raise ModelError("the model was exported in training mode (it still drops out); call eval() before exporting")
    if isinstance(operand, fx.Node) and 0 < share < 1:
        whole = writer.source is not None and writer.source.target is aten.feature_dropout.default
        operand.meta[DROPPED] = Dropout(share, channels=whole)
    return operand


def cast(writer: GraphWriter, operand: Any, dtype: Any = None, *_: Any, **more: Any) -> Any:
    """Drop a cast to no type or to the one that the operand has already; any other becomes `aten.to`."""
    wanted = dtype or more.get("dtype")
    if wanted is None or (isinstance(operand, fx.Node) and wanted == operand.meta["val"].dtype):
        return operand
    return writer.call(aten.to.dtype, operand, wanted)


def view(writer: GraphWriter, operand: Any, sizes: Any) -> Any:
    """Write a view as a reshape, since with its copies dropped the operand may have no view of that shape any more."""
    return writer.call(aten.reshape.default, operand, sizes)


def conv2d(
    writer: GraphWriter,
    image: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Write conv2d with all seven arguments, sizes as pairs; "same" padding that is uneven becomes a pad of its own."""
    stride, dilation = pair(stride), pair(dilation)
    if padding == "valid":
        padding = 0
    if padding == "same":
        spans = [dilation[axis] * (weight.shape[2 + axis] - 1) for axis in (0, 1)]
        padding = [span // 2 for span in spans]
        if any(span % 2 for span in spans):
            widths = [side for span in reversed(spans) for side in (span // 2, span - span // 2)]
            image, padding = writer.call(aten.constant_pad_nd.default, image, widths), 0
    settings = [list(stride), list(pair(padding)), list(dilation), groups]
    return writer.call(aten.conv2d.default, image, weight, bias, *settings)


def convolution(
    writer: GraphWriter,
    image: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: Any,
    beyond: Sequence[int],
    groups: int,
) -> Any:
    if transposed or len(stride) != 2:
        settings = (stride, padding, dilation, transposed, beyond, groups)
        return writer.call(aten.convolution.default, image, weight, bias, *settings)
    return conv2d(writer, image, weight, bias, stride, padding, dilation, groups)


def batch_norm(
    writer: GraphWriter,
    operand: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: Any,
    momentum: float,
    epsilon: float,
    *_: Any,
) -> Any:
    if not isinstance(operand, fx.Node):  # a weight that is standardised, as in BiT: fixed
        return writer.call(
            aten.batch_norm.default, operand, weight, bias, mean, variance, bool(training), momentum, epsilon, False
        )
    if training or mean is None:
        raise ModelError("a batch normalisation uses the batch's own statistics; call eval() before exporting")
    return writer.call(aten.batch_norm.default, operand, weight, bias, mean, variance, False, momentum, epsilon, False)


def native_batch_norm(
    writer: GraphWriter, operand: Any, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, epsilon: float
) -> Any:
    return batch_norm(writer, operand, weight, bias, mean, variance, False, momentum, epsilon), None, None


def along_axis(function: OpOverload) -> Callable[..., Any]:
    """Return the decomposition of a softmax, which casts first where it is to compute in another type."""

    def spelled(writer: GraphWriter, operand: Any, axis: int, dtype: Any = None) -> Any:
        return writer.call(function, cast(writer, operand, dtype), axis)

    return spelled


def native_along_axis(function: OpOverload) -> Callable[..., Any]:
    """Return the decomposition of a softmax as torch's inner operators say it: they may widen half precision."""

    def spelled(writer: GraphWriter, operand: Any, axis: int, half_to_float: Any) -> Any:
        return writer.call(function, cast(writer, operand, torch.float32 if half_to_float else None), axis)

    return spelled


def reduction(function: OpOverload) -> Callable[..., Any]:
    """Return the decomposition of a sum or mean along axes, which casts first where it computes in another type."""

    def spelled(writer: GraphWriter, operand: Any, *axes: Any, dtype: Any = None, **more: Any) -> Any:
        return writer.call(function, cast(writer, operand, dtype), *axes, **more)

    return spelled


def native_layer_norm(writer: GraphWriter, operand: Any, sizes: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    return writer.call(aten.layer_norm.default, operand, sizes, weight, bias, epsilon, False), None, None


def elu(writer: GraphWriter, operand: Any, *settings: Any) -> Any:
    """Write ELU with its width alone: scale * (x where x > 0, else width * (exp(input_scale * x) - 1)) in products."""
    width, (scale, input_scale) = settings[:1], (*settings[1:], 1, 1)[:2]
    if input_scale == 1:
        result = writer.call(aten.elu.default, operand, *width)
    else:
        result = writer.call(aten.elu.default, writer.call(aten.mul.Tensor, operand, input_scale), *width)
        result = writer.call(aten.where.self, writer.call(aten.gt.Scalar, operand, 0), operand, result)
    return result if scale == 1 else writer.call(aten.mul.Tensor, result, scale)


def linear(writer: GraphWriter, operand: Any, weight: Any, *bias: Any) -> Any:
    """Write a linear layer whose weights are a vector, [feature], as the product with it."""
    if len(shape(weight)) != 1:
        return writer.call(aten.linear.default, operand, weight, *bias)
    found = product(writer, operand, weight)
    return found if bias in ((), (None,)) else writer.call(aten.add.Tensor, found, *bias)


def product(writer: GraphWriter, left: Any, right: Any) -> Any:
    """Write a product with a vector as one with a matrix: a row from the left, a column from the right."""
    row, column = len(shape(left)) == 1, len(shape(right)) == 1
    if not row and not column:
        return writer.call(aten.matmul.default, left, right)
    left = writer.call(aten.unsqueeze.default, left, 0) if row else left
    right = writer.call(aten.unsqueeze.default, right, 1) if column else right
    found = writer.call_reshaped(aten.matmul.default, left, right)
    found = writer.call(aten.squeeze.dim, found, -1) if column else found
    return writer.call(aten.squeeze.dim, found, -1 if column else -2) if row else found


def attention(
    writer: GraphWriter,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropped: float = 0.0,
    is_causal: Any = 0,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Write attention as matrix products: softmax(query key^T * scale + mask) value."""
    if dropped > 0 or enable_gqa:
        raise ModelError("attention with dropout or grouped queries has no plain form here")
    (width,) = static(query, -1)
    scores = writer.call(aten.matmul.default, query, writer.call(aten.transpose.int, key, -2, -1))
    scores = writer.call(aten.mul.Tensor, scores, 1.0 / math.sqrt(width) if scale is None else scale)
    if is_causal:
        mask = torch.ones(*static(scores, -2, -1), dtype=torch.bool).tril()
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    if mask is not None:
        scores = writer.call(aten.add.Tensor, scores, mask)
    return writer.call(aten.matmul.default, writer.call(aten.softmax.int, scores, -1), value)


def max_pool_with_indices(writer: GraphWriter, image: Any, *settings: Any) -> Any:
    return writer.call(aten.max_pool2d.default, image, *settings), None


def average_pool(
    writer: GraphWriter,
    image: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: Any = 0,
    counted: Any = 1,
    divisor: int | None = None,
) -> Any:
    """Write an average pool; one with its own divisor, which the ONNX exporter drops in silence, as two matrices."""
    settings = (kernel, stride or kernel, padding, bool(ceil_mode), bool(counted))
    if divisor is None:
        return writer.call(aten.avg_pool2d.default, image, *settings)
    rows, columns = matrices(aten.avg_pool2d.default, *static(image, 2, 3), *settings, divisor)
    return writer.call(aten.matmul.default, writer.call(aten.matmul.default, rows, image), columns.T.contiguous())


def adaptive_max_pool(writer: GraphWriter, image: Any, sizes: Sequence[int]) -> Any:
    """Write equal windows as one max-pool where the sizes divide; otherwise join one pool for each output pixel."""
    lengths, counts = static(image, 2, 3), pair(sizes)
    if all(length % count == 0 for length, count in zip(lengths, counts, strict=True)):
        window = [length // count for length, count in zip(lengths, counts, strict=True)]
        return writer.call(aten.max_pool2d.default, image, window, window), None
    rows, columns = (
        [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
        for length, count in zip(lengths, counts, strict=True)
    )
    lines = []
    for top, bottom in rows:
        strip = writer.call(aten.slice.Tensor, image, 2, top, bottom)
        cells = [
            writer.call(
                aten.max_pool2d.default,
                writer.call(aten.slice.Tensor, strip, 3, left, right),
                [bottom - top, right - left],
            )
            for left, right in columns
        ]
        lines.append(writer.call(aten.cat.default, cells, 3))
    return writer.call(aten.cat.default, lines, 2), None


def split_with_sizes(writer: GraphWriter, operand: Any, sizes: Sequence[int], axis: int = 0) -> Any:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return tuple(
        writer.call(aten.slice.Tensor, operand, axis, start, start + size)
        for start, size in zip(starts, sizes, strict=True)
    )


def split(writer: GraphWriter, operand: Any, size: int, axis: int = 0) -> Any:
    (length,) = static(operand, axis)
    return split_with_sizes(writer, operand, [min(size, length - start) for start in range(0, length, size)], axis)


def chunk(writer: GraphWriter, operand: Any, count: int, axis: int = 0) -> Any:
    (length,) = static(operand, axis)
    return split(writer, operand, -(-length // count), axis)


def unbind(writer: GraphWriter, operand: Any, axis: int = 0) -> Any:
    (length,) = static(operand, axis)
    return tuple(writer.call(aten.select.int, operand, axis, index) for index in range(length))


def pad(writer: GraphWriter, operand: Any, widths: Sequence[int], mode: str = "constant", value: Any = None) -> Any:
    """Write a pad by what the operand holds itself as a look-up along each axis; one by a constant stays a pad."""
    if mode == "constant":
        return writer.call(aten.pad.default, operand, widths, mode, value)
    for place in range(len(widths) // 2):
        sides, axis = (int(widths[2 * place]), int(widths[2 * place + 1])), -1 - place
        if min(sides) < 0:
            raise ModelError(f"a pad in mode {mode!r} by {list(widths)} cuts off; slice what is cut off instead")
        if sides != (0, 0):
            (length,) = static(operand, axis)
            index = np.pad(np.arange(length), sides, PADDINGS[mode])  # type: ignore[call-overload]
            operand = writer.call(aten.index_select.default, operand, axis, torch.from_numpy(index))
    return operand


def pad_by(mode: str) -> Callable[..., Any]:
    """Return the decomposition of an operator that pads in one mode."""

    def padded(writer: GraphWriter, operand: Any, widths: Sequence[int]) -> Any:
        return pad(writer, operand, widths, mode)

    return padded


def hstack(writer: GraphWriter, operands: Sequence[Any]) -> Any:
    """Join along the second axis, since the first of a batched model is the items."""
    return writer.call(aten.cat.default, list(operands), 1)


def diagonal(writer: GraphWriter, operand: Any, offset: int = 0, axis: int = 0, other: int = 1) -> Any:
    """Write a diagonal as a look-up in its two axes, moved to the end and joined."""
    rank = len(shape(operand))
    height, width = static(operand, axis, other)
    order = [place for place in range(rank) if place not in (axis % rank, other % rank)]
    moved = writer.call(aten.permute.default, operand, [*order, axis % rank, other % rank])
    numbers = torch.arange(height * width).reshape(height, width).diagonal(offset).clone()
    return writer.call(aten.index_select.default, writer.call(aten.flatten.using_ints, moved, -2, -1), -1, numbers)


def randomised_relu(
    writer: GraphWriter, operand: Any, low: float = 1 / 8, high: float = 1 / 3, training: Any = 0, *_: Any
) -> Any:
    """Write a leaky ReLU whose slope was drawn while the model learned, with the mean slope."""
    if training:
        raise ModelError("the model was exported in training mode (rrelu draws its slopes); call eval() before")
    return writer.call(aten.leaky_relu.default, operand, (low + high) / 2)


SPELLINGS: Mapping[OpOverload, Callable[..., Any]] = {
    aten.dropout.default: dropout,
    aten.feature_dropout.default: dropout,
    aten.contiguous.default: same,
    aten.clone.default: same,
    aten.alias.default: same,
    aten.lift_fresh_copy.default: same,
    aten.to.dtype: cast,
    aten._to_copy.default: cast,
    aten.view.default: view,
    aten._unsafe_view.default: view,
    aten.conv2d.default: conv2d,
    aten.conv2d.padding: conv2d,
    aten.batch_norm.default: batch_norm,
    aten._native_batch_norm_legit_no_training.default: native_batch_norm,
    aten.softmax.int: along_axis(aten.softmax.int),
    aten.log_softmax.int: along_axis(aten.log_softmax.int),
    aten._softmax.default: native_along_axis(aten.softmax.int),
    aten._log_softmax.default: native_along_axis(aten.log_softmax.int),
    aten.sum.dim_IntList: reduction(aten.sum.dim_IntList),
    aten.mean.dim: reduction(aten.mean.dim),
    aten.elu.default: elu,
    aten.linear.default: linear,
    aten.matmul.default: product,
    aten.mv.default: product,
    aten.dot.default: product,
    aten.native_layer_norm.default: native_layer_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten.max_pool2d_with_indices.default: max_pool_with_indices,
    aten.hstack.default: hstack,
    aten.diagonal.default: diagonal,
    aten.rrelu.default: randomised_relu,
    aten.avg_pool2d.default: average_pool,
    aten.adaptive_max_pool2d.default: adaptive_max_pool,
    aten.split_with_sizes.default: split_with_sizes,
    aten.split.Tensor: split,
    aten.chunk.default: chunk,
    aten.unbind.int: unbind,
    aten.pad.default: pad,
    aten.reflection_pad1d.default: pad_by("reflect"),
    aten.reflection_pad2d.default: pad_by("reflect"),
    aten.replication_pad1d.default: pad_by("replicate"),
    aten.replication_pad2d.default: pad_by("replicate"),
}
SAME: frozenset[OpOverload] = frozenset(
    target for target, spelling in SPELLINGS.items() if spelling in (same, dropout, cast)
)
