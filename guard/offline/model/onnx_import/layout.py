"""Removes the transposition with which a channel-last file begins, since images come channel first here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.offline.model.onnx_import.graph import Graph
from guard.offline.model.onnx_import.graph_node import Node

TO_CHANNEL_FIRST = [0, 3, 1, 2]
EACH_ALONE = {"Add", "Sub", "Mul", "Div", "Cast", "Identity", "Clip", "Neg"}


def channel_first(graph: Graph) -> Graph | None:
    """Return the same graph from an image [item, channel, height, width]; None where no transposition begins it.

    What is done to each number before the transposition (a cast, a rescaling, a normalisation) moves behind it.
    """
    nodes, constants = list(graph.nodes), dict(graph.constants)
    name = graph.input
    while True:
        readers = [index for index, node in enumerate(nodes) if name in node.inputs]
        if len(readers) != 1 or name == graph.output:
            return None
        (index,) = readers
        node = nodes[index]
        if node.kind == "Transpose" and node.get("perm") == TO_CHANNEL_FIRST:
            nodes[index] = Node("Identity", node.name, node.inputs, node.outputs, {}, node.opset)
            return replace(graph, nodes=tuple(nodes), constants=constants)
        turned = turn(node, name, constants)
        if turned is None:
            return None
        nodes[index], name = turned, node.outputs[0]


def turn(node: Node, given: str, constants: dict[str, NDArray[Any]]) -> Node | None:
    """Return an elementwise node on channel-first operands, its constants transposed too; None for any other node."""
    if node.kind not in EACH_ALONE:
        return None
    inputs = list(node.inputs)
    for place, name in enumerate(inputs):
        if not name or name == given:
            continue
        if name not in constants or constants[name].ndim > 4:
            return None
        if constants[name].size > 1:
            inputs[place] = f"{name} channel first"
            constants[inputs[place]] = turned_constant(constants[name])
    return replace(node, inputs=tuple(inputs))


def turned_constant(value: NDArray[Any]) -> NDArray[Any]:
    sizes: Sequence[int] = (1,) * (4 - value.ndim) + value.shape
    return np.ascontiguousarray(value.reshape(sizes).transpose(TO_CHANNEL_FIRST))
