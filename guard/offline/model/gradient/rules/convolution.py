"""The adjoint of a 2-D convolution, written as convolutions.

Stride 1: a convolution with flipped, transposed filters. Larger strides: the image's pixels fall into stride*stride
phases, each a small convolution of the gradient; one convolution computes all phases, and they are woven together
(depth to space). A transposed convolution would leave ONNX Runtime's blocked layout and multiply by zeros.

Zeros that a model puts around an image by itself (TensorFlow's "same", where they may be more on one side) count as the
convolution's own padding: what falls on them on the way back is not computed, rather than cut off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from guard.errors import ModelError
from guard.offline.model.gradient.tape import Rule, Sent, Tape
from guard.offline.model.graph.shapes import pair, static

aten = torch.ops.aten


def convolution(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradient through conv2d, all seven arguments given (see `plain`): image, weight, bias, stride ..."""
    image, weight, bias = node.args[:3]
    stride, padding, dilation, groups = _settings(node)
    if tape.is_live(bias):
        raise ModelError(f"{node.target} ({node.name}) has a bias that depends on the input; no adjoint for that")
    if isinstance(image, fx.Node) and tape.is_live(image):
        image, (top, left) = _unpadded(image)
        padding = (padding[0] + top, padding[1] + left)
        filters = Filters(tape.tensor(weight, node), stride, padding, dilation, groups)
        yield image, (_unit if filters.stride == (1, 1) else _strided)(tape, node, image, gradient, filters)


def _unpadded(image: fx.Node) -> tuple[fx.Node, tuple[int, int]]:
    """Return what a zero padding was put around, and its width on top and at the left; any other node as it is."""
    match image.target, image.args:
        case aten.constant_pad_nd.default, (fx.Node() as inner, widths, *value):
            zeros = value in ([], [0])
        case aten.pad.default, (fx.Node() as inner, widths, *mode):
            zeros = mode[:1] in ([], ["constant"]) and mode[1:] in ([], [None], [0])
        case _:
            return image, (0, 0)
    left, right, top, bottom = (*cast(Sequence[int], widths), 0, 0, 0, 0)[:4]
    if not zeros or image.kwargs or len(cast(Sequence[int], widths)) > 4 or min(left, right, top, bottom) < 0:
        return image, (0, 0)
    return inner, (top, left)


@dataclass(frozen=True)
class Filters:
    """A convolution's filters [out, in/groups, height, width] and how they move over the image.

    `padding` is what lies above and to the left of the image; what lies below and to the right follows from the number
    of outputs.
    """

    weight: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def exchanged(self) -> Tensor:
        """The filters with input and output channels exchanged: [groups, in/groups, out/groups, height, width]."""
        outputs, *rest = self.weight.shape
        return self.weight.reshape(self.groups, outputs // self.groups, *rest).transpose(1, 2)


def _settings(node: fx.Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
    stride, padding, dilation, groups = cast(tuple[Any, Any, Any, int], node.args[3:])
    return pair(stride), pair(padding), pair(dilation), groups


def _unit(tape: Tape, node: fx.Node, image: fx.Node, gradient: fx.Node, filters: Filters) -> fx.Node:
    sizes, outputs, taps = static(image, 2, 3), static(node, 2, 3), filters.weight.shape[2:]
    spans = [filters.dilation[axis] * (taps[axis] - 1) for axis in (0, 1)]
    before = [spans[axis] - filters.padding[axis] for axis in (0, 1)]
    after = [sizes[axis] - outputs[axis] + filters.padding[axis] for axis in (0, 1)]
    shared = [max(0, min(before[axis], after[axis])) for axis in (0, 1)]  # the convolution's own padding; the rest:
    uneven = [reach[axis] - shared[axis] for axis in (1, 0) for reach in (before, after)]
    gradient = _padded(tape, gradient, uneven)
    weights = tape.constant(f"{node.name}_adjoint", filters.exchanged.flip(3, 4).flatten(0, 1))
    dilation = list(filters.dilation)
    return tape.call(aten.conv2d.default, gradient, weights, None, [1, 1], shared, dilation, filters.groups)


def _strided(tape: Tape, node: fx.Node, image: fx.Node, gradient: fx.Node, filters: Filters) -> fx.Node:
    sizes, outputs = static(image, 2, 3), static(node, 2, 3)
    (rows, top), (columns, left) = (
        phases(filters.weight.shape[2 + axis], filters.stride[axis], filters.padding[axis], filters.dilation[axis])
        for axis in (0, 1)
    )
    cells = [
        math.ceil(sizes[axis] / filters.stride[axis]) for axis in (0, 1)
    ]  # places at which all phases are computed
    bottom = cells[0] - outputs[0] + top + rows.shape[1] - 1
    right = cells[1] - outputs[1] + left + columns.shape[1] - 1
    gradient = _padded(tape, gradient, [-left, right, -top, bottom])
    exchanged = filters.exchanged
    links = (rows.to(exchanged.dtype), columns.to(exchanged.dtype))
    woven = torch.einsum("giohw,ath,buw->giabotu", exchanged, *links).flatten(0, 3)
    weights = tape.constant(f"{node.name}_adjoint", woven)
    parts = tape.call(aten.conv2d.default, gradient, weights, None, [1, 1], [0, 0], [1, 1], filters.groups)
    return tape.call(weave, parts, filters.stride, sizes)


def phases(taps: int, stride: int, padding: int, dilation: int) -> tuple[Tensor, int]:
    """Return which taps link which phase of the image to which output: 0/1 [phase, offset, tap], and the first offset.

    Pixel stride*cell + phase is linked to output cell + first + offset: stride*output + dilation*tap - padding = pixel.
    """
    links = [
        (phase, (phase + padding - dilation * tap) // stride, tap)
        for phase in range(stride)
        for tap in range(taps)
        if (phase + padding - dilation * tap) % stride == 0
    ]
    first = min(offset for _, offset, _ in links)
    last = max(offset for _, offset, _ in links)
    chosen = torch.zeros(stride, last - first + 1, taps)
    for phase, offset, tap in links:
        chosen[phase, offset - first, tap] = 1.0
    return chosen, first


def weave(parts: Tensor, stride: tuple[int, int], sizes: tuple[int, int]) -> Tensor:
    """Interleave the phases of a strided gradient to an image, as depth to space does.

    [item, (channel, phase row, phase column), cell row, cell column] -> [item, channel, height, width].
    Columns first, then rows: ONNX Runtime does these two transpositions in half the time of one DepthToSpace.
    """
    down, across = stride
    if across > 1:
        parts = parts.unflatten(1, (-1, across)).permute(0, 1, 3, 4, 2).flatten(3)
    if down > 1:
        parts = parts.unflatten(1, (-1, down)).transpose(2, 3).flatten(2, 3)
    return parts[:, :, : sizes[0], : sizes[1]]


def _padded(tape: Tape, gradient: fx.Node, pads: list[int]) -> fx.Node:
    """Pad a gradient with zeros (left, right, top, bottom); negative numbers crop it."""
    return tape.call(aten.constant_pad_nd.default, gradient, pads) if any(pads) else gradient


RULES: Mapping[OpOverload, Rule] = {aten.conv2d.default: convolution}
