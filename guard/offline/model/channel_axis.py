"""Axis that holds the channels of a layer inside a network: the second, or the last where a network keeps windows.

What reads a layer (detectors, steering, attribution) takes channels for the second axis. A map that has them last is
turned before it is read and turned back after it; ONNX Runtime takes such a pair out of a program where nothing reads
the map.

How it works. The axis is followed through the graph, from the input, whose channels are second: convolutions put it
there, turns move it, reshapes keep it where its size and what lies before it stay, and all else leaves it. A reshape
that cuts or joins channels loses it; a linear layer after that puts it last.

Example: Swin keeps maps [item, height, width, channel]. Averaged as if channels came second, a row of places with all
its channels would be one number. A transformer of series keeps [item, time, channel], and each step would be one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

aten = torch.ops.aten

LINEAR = {aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default}
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.convolution.default}
PROJECTIONS = {aten.linear.default, aten.addmm.default, aten.mm.default}  # of which the last axis is what they make
TURNS = {aten.permute.default, aten.transpose.int}
RESHAPES = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
}
REDUCTIONS = {aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.max.dim, aten.select.int}
Axes: TypeAlias = Mapping[fx.Node, int | None]  # None: the channels lie in no axis of their own
Size: TypeAlias = tuple[int, tuple[str, ...]]  # a number, and the symbols that it is multiplied by


def channel_axes(graph: fx.Graph) -> dict[fx.Node, int | None]:
    """Return the axis of each node's value that holds the channels; None where there is none, or it is not known."""
    axes: dict[fx.Node, int | None] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            axes[node] = 1
        elif node.op == "call_function":
            axes[node] = axis_of(node, axes)
    return axes


def axis_of(node: fx.Node, axes: Axes) -> int | None:
    """Return the channels' axis of a node's value, by those of what it reads."""
    if node.target in CONVOLUTIONS:
        return 1
    read = [one for one in node.all_input_nodes if one in axes]
    if node.target is operator.getitem:  # one of several values
        (several,) = read
        alike = sizes(node) and len(sizes(node)) == len(sizes(several.all_input_nodes[0]))
        return axes[several] if alike else None
    made = len(sizes(node)) - 1 if node.target in PROJECTIONS else None
    read = [one for one in read if sizes(one)]
    if not read or not sizes(node):
        return axes[read[0]] if read else None
    source = max(read, key=lambda one: (axes[one] is not None, known_size(one)))
    axis, rank = axes[source], len(sizes(source))
    if axis is None:
        return made
    if node.target is aten.permute.default:
        turned = [place % rank for place in list(node.args[1])]  # type: ignore[arg-type]
        return turned.index(axis)
    if node.target is aten.transpose.int:
        first, second = (int(place) % rank for place in node.args[1:3])  # type: ignore[arg-type]
        return {first: second, second: first}.get(axis, axis)
    if node.target in RESHAPES:
        return reshaped(sizes(source), axis, sizes(node))
    if node.target in REDUCTIONS and len(sizes(node)) < rank:
        return reduced(node, axis, rank)
    return axis if len(sizes(node)) == rank else None


def reshaped(before: Sequence[Size], axis: int, after: Sequence[Size]) -> int | None:
    """Return where an axis lies after a reshape, by its size and by how much lies before it; None where it is lost."""
    wanted = (product(before[:axis]), before[axis])
    found = [place for place in range(len(after)) if (product(after[:place]), after[place]) == wanted]
    return found[-1] if found else None


def reduced(node: fx.Node, axis: int, rank: int) -> int | None:
    """Return where an axis lies once others are taken away; None where it is one of them."""
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if given is None:
        return None
    gone = {int(place) % rank for place in (given if isinstance(given, list | tuple) else [given])}
    return None if axis in gone else axis - sum(place < axis for place in gone)


def sizes(node: fx.Node) -> list[Size]:
    """Return the sizes of a node's value, symbols by their names; none of several values, or of numbers."""
    return [size_of(one) for one in getattr(node.meta.get("val"), "shape", ())]


def size_of(one: Any) -> Size:
    if isinstance(one, int):
        return one, ()
    number, rest = one.node.expr.as_coeff_Mul()
    return (int(number), (str(rest),)) if number.is_integer else (1, (str(one.node.expr),))


def product(several: Sequence[Size]) -> Size:
    return math.prod(number for number, _ in several), tuple(sorted(name for _, names in several for name in names))


def known_size(node: fx.Node) -> int:
    """Return the number of values of a node, symbols left out."""
    return product(sizes(node))[0]


def with_channels_second(graph: fx.GraphModule, names: Collection[str]) -> dict[str, str]:
    """Turn the maps of these nodes that have channels last, in place; return the node to read for each of them."""
    turned = {}
    for node, axis in channel_axes(graph.graph).items():
        if node.name in names and is_last(node, axis):
            readers, rank = list(node.users), len(sizes(node))
            with graph.graph.inserting_after(node):
                second = turn(graph.graph, node, [0, rank - 1, *range(1, rank - 1)])
            with graph.graph.inserting_after(second):
                last = turn(graph.graph, second, [0, *range(2, rank), 1])
            for reader in readers:
                reader.replace_input_with(node, last)
            turned[node.name] = second.name
    graph.recompile()
    return turned


def is_last(node: fx.Node, axis: int | None) -> bool:
    """Tell whether a node's value is a map whose channels lie in its last axis."""
    return axis == len(sizes(node)) - 1 >= 2


def turn(graph: fx.Graph, node: fx.Node, axes: list[int]) -> fx.Node:
    """Write one turn of a map's axes, of known shape."""
    turned = graph.call_function(aten.permute.default, (node, axes))
    with enable_python_dispatcher():
        turned.meta["val"] = node.meta["val"].permute(axes)
    return turned
