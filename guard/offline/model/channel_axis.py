"""Axis that holds the channels of a map inside a network: the second, or the last where a network keeps windows.

What reads a layer (detectors, steering, attribution) takes channels for the second axis. A map that has them last is
turned before it is read and turned back after it; ONNX Runtime takes such a pair out of a program where nothing reads
the map.

Example: Swin keeps maps [item, height, width, channel]. Averaged as if channels came second, a row of places with all
its channels would be one number.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from guard.offline.model.graph.shapes import shape

aten = torch.ops.aten

LINEAR = {aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default}
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.convolution.default}
RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
TURNS = {aten.permute.default, aten.transpose.int}
TO_LAST, TO_SECOND = [0, 2, 3, 1], [0, 3, 1, 2]


def has_channels_last(node: fx.Node) -> bool:
    """Tell whether a map's channels are known to be its last axis: by what was computed last along its first operands.

    Linear layers and normalisations of one axis leave channels last, convolutions leave them second. A turn of axes
    or a reshape that says neither is taken for channels second.
    """
    while True:
        if node.target in TURNS:
            return node.target is aten.permute.default and list(node.args[1]) == TO_LAST  # type: ignore[arg-type]
        if node.target in LINEAR:
            return len(shape(node)) > 2
        if node.target is aten.layer_norm.default:
            return len(list(node.args[1])) == 1 and len(shape(node)) > 2  # type: ignore[arg-type]
        operand = next((one for one in node.all_input_nodes if one.op == "call_function" and len(shape(one)) > 2), None)
        if operand is None or node.target in CONVOLUTIONS:
            return False
        if node.target in RESHAPES and shape(node)[-1:] != shape(operand)[-1:]:
            return False
        node = operand


def with_channels_second(graph: fx.GraphModule, names: Collection[str]) -> dict[str, str]:
    """Turn the maps of these nodes that have channels last, in place; return the node to read for each of them."""
    turned = {}
    for node in list(graph.graph.nodes):
        if node.name in names and len(shape(node)) == 4 and has_channels_last(node):
            readers = list(node.users)
            with graph.graph.inserting_after(node):
                second = turn(graph.graph, node, TO_SECOND)
            with graph.graph.inserting_after(second):
                last = turn(graph.graph, second, TO_LAST)
            for reader in readers:
                reader.replace_input_with(node, last)
            turned[node.name] = second.name
    graph.recompile()
    return turned


def turn(graph: fx.Graph, node: fx.Node, axes: list[int]) -> fx.Node:
    """Write one turn of a map's axes, of known shape."""
    turned = graph.call_function(aten.permute.default, (node, axes))
    with enable_python_dispatcher():
        turned.meta["val"] = node.meta["val"].permute(axes)
    return turned
