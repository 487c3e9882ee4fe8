"""Adjoints of operators that move numbers and change none of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.nn.functional import pad

from guard.errors import ModelError
from guard.offline.model.gradient.tape import Rule, Sent, Tape, from_gradient, reduced
from guard.offline.model.graph.shapes import shape, static, wildcard

aten = torch.ops.aten


def reshape(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradient of view, reshape, flatten, squeeze ..., in the operand's shape."""
    operand = node.args[0]
    if isinstance(operand, fx.Node):
        yield operand, tape.call(aten.reshape.default, gradient, wildcard(shape(operand), node))


def permute(gradient: Tensor, order: Sequence[int]) -> Tensor:
    rank = len(order)
    return gradient.permute([[axis % rank for axis in order].index(axis) for axis in range(rank)])


def transpose(gradient: Tensor, first: int = 0, second: int = 1) -> Tensor:
    return gradient.transpose(first, second)


def expand(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    operand = node.args[0]
    if isinstance(operand, fx.Node):
        yield operand, reduced(tape, gradient, operand, node)


def concatenate(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    operands, axis = node.args[0], _whole(_setting(node, 1, "dim", 0))
    start = 0
    for operand in operands if isinstance(operands, Sequence) else ():
        if isinstance(operand, fx.Node):
            (length,) = static(operand, axis)
            if tape.is_live(operand):
                yield operand, tape.call(aten.slice.Tensor, gradient, axis, start, start + length)
            start += length


def cut(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradient through slice(x, axis, start, end, step), which is zero where the slice left numbers out."""
    operand = node.args[0]
    if not isinstance(operand, fx.Node):
        return
    axis = _whole(_setting(node, 1, "dim", 0))
    start, end = _setting(node, 2, "start", None), _setting(node, 3, "end", None)
    every = _whole(_setting(node, 4, "step", 1))
    if shape(operand)[axis] is None:
        if start not in (None, 0) or end not in (None, sys.maxsize) or every != 1:
            raise ModelError(f"{node.target} ({node.name}) picks items of the batch; a classifier treats all alike")
        yield operand, gradient
        return
    (length,) = static(operand, axis)
    places = range(length)[slice(start, end, every)]
    yield operand, tape.call(uncut, gradient, axis % len(shape(operand)), length, places.start, every)


def select(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    operand, axis, index = node.args
    if isinstance(operand, fx.Node):
        (length,) = static(operand, _whole(axis))
        place = _whole(axis) % len(shape(operand))
        lifted = tape.call(aten.unsqueeze.default, gradient, place)
        yield operand, tape.call(uncut, lifted, place, length, _whole(index) % length, 1)


def uncut(gradient: Tensor, axis: int, length: int, start: int, every: int) -> Tensor:
    """Put the gradient at start, start + every, ... of an axis of this length, zeros elsewhere."""
    after = [0, 0] * (gradient.dim() - 1 - axis)
    if every > 1:
        spaced = pad(gradient.unsqueeze(axis + 1), [*after, 0, every - 1])
        gradient = spaced.flatten(axis, axis + 1)
    return pad(gradient, [*after, start, length - start - gradient.shape[axis]])


def pick(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradient through index_select(x, axis, places): what all readers of a place send it, added up."""
    operand, axis, index = node.args
    if not isinstance(operand, fx.Node):
        return
    (length,) = static(operand, _whole(axis))
    places = [place % length for place in tape.tensor(index, node).tolist()]
    readers: list[list[int]] = [[] for _ in range(length)]
    for order, place in enumerate(places):
        readers[place].append(order)
    most = max(map(len, readers))
    spare = int(any(len(read) < most for read in readers))  # these read a zero that is put behind the gradient
    orders = [order for read in readers for order in (*read, *[len(places)] * (most - len(read)))]
    table = tape.constant(f"{node.name}_readers", torch.tensor(orders))
    yield operand, tape.call(unpicked, gradient, table, _whole(axis) % len(shape(operand)), most, spare)


def unpicked(gradient: Tensor, table: Tensor, axis: int, most: int, spare: int) -> Tensor:
    """Return for each place the sum over its readers, of which a place has at most `most`."""
    if spare:
        gradient = pad(gradient, [*[0, 0] * (gradient.dim() - 1 - axis), 0, spare])
    found = gradient.index_select(axis, table)
    return found if most == 1 else found.unflatten(axis, (-1, most)).sum(axis + 1)


def padded(gradient: Tensor, widths: Sequence[int], *_: object) -> Tensor:
    """Return the gradient through a constant padding: what falls on the padding is cut off."""
    return pad(gradient, [-width for width in widths])


def pixel_shuffle(gradient: Tensor, factor: int) -> Tensor:
    return torch.nn.functional.pixel_unshuffle(gradient, factor)


def pixel_unshuffle(gradient: Tensor, factor: int) -> Tensor:
    return torch.nn.functional.pixel_shuffle(gradient, factor)


def _setting(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ModelError(f"an axis or index of {value} is not a fixed number")
    return value


RULES: Mapping[OpOverload, Rule] = {
    aten.reshape.default: reshape,
    aten.flatten.using_ints: reshape,
    aten.unflatten.int: reshape,
    aten.squeeze.default: reshape,
    aten.squeeze.dim: reshape,
    aten.squeeze.dims: reshape,
    aten.unsqueeze.default: reshape,
    aten.permute.default: from_gradient(permute),
    aten.transpose.int: from_gradient(transpose),
    aten.t.default: from_gradient(transpose),
    aten.expand.default: expand,
    aten.expand_as.default: expand,
    aten.cat.default: concatenate,
    aten.slice.Tensor: cut,
    aten.select.int: select,
    aten.index_select.default: pick,
    aten.constant_pad_nd.default: from_gradient(padded),
    aten.pad.default: from_gradient(padded),
    aten.pixel_shuffle.default: from_gradient(pixel_shuffle),
    aten.pixel_unshuffle.default: from_gradient(pixel_unshuffle),
}
