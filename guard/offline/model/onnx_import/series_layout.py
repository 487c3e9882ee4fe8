"""Order of a series model's axes, by the axis that its first layer takes for channels.

Example: a file that takes [item, 128, 3] and begins with Transpose (0, 2, 1) and Conv has its channels last; so has one
that begins with an LSTM over [time, item, feature]. What a matrix product comes first in could be either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from guard.axes import SERIES
from guard.offline.model.onnx_import.graph import Graph
from guard.offline.model.onnx_import.graph_node import Node

# Which axis of its operand a layer takes for channels.
CHANNEL_AXES: Mapping[str, int] = {
    "Conv": 1,
    "BatchNormalization": 1,
    "InstanceNormalization": 1,
    "LSTM": 2,
    "GRU": 2,
    "RNN": 2,
}
EACH_ALONE = {"Add", "Sub", "Mul", "Div", "Cast", "Identity", "Clip", "Neg", "Relu", "Pad", "Dropout"}
Origins = tuple[int | None, ...]  # for each axis of a tensor: the axis of the input that it is, None for one of its own


def series_layout(graph: Graph) -> str | None:
    """Return the layout of a file that takes series; None where it takes others, or no layer says it."""
    if len(graph.sizes) != len(SERIES.names) + 1:
        return None
    known: dict[str, Origins] = {graph.input: tuple(range(len(graph.sizes)))}
    for node in graph.nodes:
        given = known.get(node.inputs[0]) if node.inputs else None
        if given is None:
            continue
        if (axis := CHANNEL_AXES.get(node.kind)) is not None:
            return layout_by(given[axis] if axis < len(given) else None)
        moved = followed(node, given, graph.constants)
        if moved is not None:
            known[node.outputs[0]] = moved
    return None


def layout_by(channel_axis: int | None) -> str | None:
    """Return the layout whose channels are this axis of a batch."""
    first, last = SERIES.layouts
    return {1: first, len(SERIES.names): last}.get(channel_axis or 0)


def followed(node: Node, given: Origins, constants: Mapping[str, Any]) -> Origins | None:
    """Return where the axes of a node's result come from; None where they are others."""
    if node.kind in EACH_ALONE:
        return given
    if node.kind == "Transpose":
        return tuple(given[axis] for axis in node.get("perm") or range(len(given))[::-1])
    if node.kind not in ("Unsqueeze", "Squeeze"):
        return None
    axes = axes_named(node, constants)
    if node.kind == "Squeeze":
        return tuple(origin for axis, origin in enumerate(given) if axis not in {one % len(given) for one in axes})
    found = list(given)
    for axis in sorted(one % (len(given) + len(axes)) for one in axes):
        found.insert(axis, None)
    return tuple(found)


def axes_named(node: Node, constants: Mapping[str, Any]) -> Sequence[int]:
    """Return the axes that a node adds or drops: an attribute, or a fixed operand."""
    if len(node.inputs) > 1 and node.inputs[1] in constants:
        return [int(axis) for axis in np.atleast_1d(constants[node.inputs[1]])]
    return [int(axis) for axis in node.get("axes", ())]
