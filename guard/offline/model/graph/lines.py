"""Decompositions of operators along one axis, into the same operators over planes of one row.

Rule 1: what follows knows planes alone: convolutions and pools have one form, one adjoint and one form in ONNX.
Example: conv1d over [item, channel, time] is conv2d over [item, channel, 1, time] with a kernel of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from guard.errors import ModelError
from guard.offline.model.graph.decompositions import adaptive_max_pool, average_pool, conv2d, convolution
from guard.offline.model.graph.writer import GraphWriter

aten = torch.ops.aten


def as_plane(writer: GraphWriter, line: Any) -> Any:
    return writer.call(aten.unsqueeze.default, line, -2)


def as_line(writer: GraphWriter, plane: Any) -> Any:
    return writer.call(aten.squeeze.dim, plane, -2)


def along(setting: Any, *, across: int) -> list[int]:
    """Return a setting along the line as that of a plane, with what it is across the one row."""
    (value,) = setting if isinstance(setting, list | tuple) else (setting,)
    return [across, int(value)]


def conv1d(
    writer: GraphWriter,
    line: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Write conv1d as conv2d; "same" padding is the kernel's own, of one row as along the line."""
    sides = padding if isinstance(padding, str) else along(padding, across=0)
    kernel = writer.call(aten.unsqueeze.default, weight, -2)
    settings = (along(stride, across=1), sides, along(dilation, across=1), groups)
    return as_line(writer, conv2d(writer, as_plane(writer, line), kernel, bias, *settings))


def any_convolution(
    writer: GraphWriter,
    line: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: Any,
    beyond: Sequence[int],
    groups: int,
) -> Any:
    """Write a convolution over a line as one over a plane; over planes it is as it was."""
    if len(stride) != 1:
        return convolution(writer, line, weight, bias, stride, padding, dilation, transposed, beyond, groups)
    if transposed:
        raise ModelError("a transposed convolution along one axis has no canonical form; take one over planes")
    return conv1d(writer, line, weight, bias, stride, padding, dilation, groups)


def max_pool1d(
    writer: GraphWriter,
    line: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = 0,
) -> Any:
    settings = (
        along(kernel, across=1),
        along(stride or kernel, across=1),
        along(padding, across=0),
        along(dilation, across=1),
        bool(ceil_mode),
    )
    return as_line(writer, writer.call(aten.max_pool2d.default, as_plane(writer, line), *settings))


def max_pool1d_with_indices(writer: GraphWriter, line: Any, *settings: Any) -> Any:
    return max_pool1d(writer, line, *settings), None


def avg_pool1d(
    writer: GraphWriter,
    line: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: Any = 0,
    counted: Any = 1,
) -> Any:
    window, steps = along(kernel, across=1), along(stride or kernel, across=1)
    plane = average_pool(writer, as_plane(writer, line), window, steps, along(padding, across=0), ceil_mode, counted)
    return as_line(writer, plane)


def adaptive_avg_pool1d(writer: GraphWriter, line: Any, sizes: Any) -> Any:
    plane = writer.call(aten.adaptive_avg_pool2d.default, as_plane(writer, line), along(sizes, across=1))
    return as_line(writer, plane)


def adaptive_max_pool1d(writer: GraphWriter, line: Any, sizes: Any) -> Any:
    plane, _ = adaptive_max_pool(writer, as_plane(writer, line), along(sizes, across=1))
    return as_line(writer, plane), None


LINES: Mapping[OpOverload, Callable[..., Any]] = {
    aten.conv1d.default: conv1d,
    aten.conv1d.padding: conv1d,
    aten.convolution.default: any_convolution,
    aten.max_pool1d.default: max_pool1d,
    aten.max_pool1d_with_indices.default: max_pool1d_with_indices,
    aten.avg_pool1d.default: avg_pool1d,
    aten.adaptive_avg_pool1d.default: adaptive_avg_pool1d,
    aten.adaptive_max_pool1d.default: adaptive_max_pool1d,
}
