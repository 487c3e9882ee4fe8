"""Removes the transposition with which a channel-last file begins, since items come channel first here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.axes import from_wire
from guard.offline.model.onnx_import.graph import Graph
from guard.offline.model.onnx_import.graph_node import Node

EACH_ALONE = {"Add", "Sub", "Mul", "Div", "Cast", "Identity", "Clip", "Neg"}


def channel_first(graph: Graph, layout: str) -> Graph | None:
    """Return the same graph from items with channels first; None where no transposition begins it.

    What is done to each number before the transposition (a cast, a rescaling, a normalisation) moves behind it.
    """
    nodes, constants, order = list(graph.nodes), dict(graph.constants), from_wire(layout, len(graph.sizes))
    name = graph.input
    while True:
        readers = [index for index, node in enumerate(nodes) if name in node.inputs]
        if len(readers) != 1 or name == graph.output:
            return None
        (index,) = readers
        node = nodes[index]
        if node.kind == "Transpose" and tuple(node.get("perm", ())) == order:
            nodes[index] = Node("Identity", node.name, node.inputs, node.outputs, {}, node.opset)
            return replace(graph, nodes=tuple(nodes), constants=constants)
        turned = turn(node, name, constants, order)
        if turned is None:
            return None
        nodes[index], name = turned, node.outputs[0]


def turn(node: Node, given: str, constants: dict[str, NDArray[Any]], order: Sequence[int]) -> Node | None:
    """Return an elementwise node on channel-first operands, its constants transposed too; None for any other node."""
    if node.kind not in EACH_ALONE:
        return None
    inputs = list(node.inputs)
    for place, name in enumerate(inputs):
        if not name or name == given:
            continue
        if name not in constants or constants[name].ndim > len(order):
            return None
        if constants[name].size > 1:
            inputs[place] = f"{name} channel first"
            constants[inputs[place]] = turned_constant(constants[name], order)
    return replace(node, inputs=tuple(inputs))


def turned_constant(value: NDArray[Any], order: Sequence[int]) -> NDArray[Any]:
    sizes: Sequence[int] = (1,) * (len(order) - value.ndim) + value.shape
    return np.ascontiguousarray(value.reshape(sizes).transpose(order))
