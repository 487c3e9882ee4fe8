"""Writes parts of a tensor that are taken out of a sequence as slices of the tensor itself.

Example: torch's older exporter may write `x.chunk(2, 1)[1]` of a tensor [item, 6] as SplitToSequence (x, 3, axis=1) and
SequenceAt (parts, 1). What becomes of it is Slice (x, 3, 6, 1). A list of tensors that is joined again, by
SequenceConstruct and ConcatFromSequence, becomes a Concat.

Rule 1. A sequence that something else reads, or whose places the input's values decide, stays, and is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.offline.model.onnx_import.graph_node import Node

MAKERS = ("SplitToSequence", "SequenceConstruct")
KINDS = (
    *MAKERS,
    *(f"Sequence{end}" for end in ("At", "Empty", "Erase", "Insert", "Length", "Map")),
    "ConcatFromSequence",
)
MAX_SLICED_VALUES = 2**31 - 1  # of a slice that goes on to the end


def without_sequences(nodes: Sequence[Node], constants: dict[str, NDArray[Any]]) -> list[Node]:
    """Return the nodes with slices and joins in place of sequences; what these need is added to the constants."""
    makers = {node.outputs[0]: node for node in nodes if node.kind in MAKERS}
    if not makers:
        return list(nodes)
    written: list[Node] = []
    for node in nodes:
        maker = makers.get(node.inputs[0]) if node.inputs else None
        written += (maker and rewritten(maker, node, constants)) or [node]
    before, now = ({name for node in some for name in node.inputs} for some in (nodes, written))
    return [node for node in written if node.kind not in MAKERS or node.outputs[0] not in before - now]


def rewritten(maker: Node, node: Node, constants: dict[str, NDArray[Any]]) -> list[Node]:
    """Return nodes that give what a node reads out of a sequence; none where it cannot be written so."""
    if node.kind == "ConcatFromSequence" and maker.kind == "SequenceConstruct":
        return joined(maker, node, constants)
    if node.kind != "SequenceAt" or node.inputs[1] not in constants:
        return []
    place = int(constants[node.inputs[1]])
    if maker.kind == "SplitToSequence":
        return sliced(maker, node, place, constants)
    if not -len(maker.inputs) <= place < len(maker.inputs):
        raise node.refuse(f"reads part {place} of {len(maker.inputs)}", "export the model again: the file is damaged")
    return [replace(node, kind="Identity", inputs=(maker.inputs[place],))]


def joined(maker: Node, node: Node, constants: dict[str, NDArray[Any]]) -> list[Node]:
    """Return a Concat of a list's tensors, along an axis that each is given first where it is a new one."""
    join = replace(node, kind="Concat", inputs=maker.inputs, attributes={"axis": node.get("axis", 0)})
    if not node.get("new_axis", 0):
        return [join]
    axes = fixed(f"{node.outputs[0]} axis", node.get("axis", 0), constants)
    names = [f"{node.outputs[0]} part {place}" for place in range(len(maker.inputs))]
    parts = [
        replace(node, kind="Unsqueeze", inputs=(given, axes), outputs=(name,), attributes={}, opset=13)
        for given, name in zip(maker.inputs, names, strict=True)
    ]
    return [*parts, replace(join, inputs=tuple(names))]


def sliced(maker: Node, node: Node, place: int, constants: dict[str, NDArray[Any]]) -> list[Node]:
    """Return a slice for one part of a tensor that is split evenly, or at places that the file says."""
    given, split = (*maker.inputs, "")[:2]
    lengths = constants.get(split) if split else np.asarray(1)
    name = node.outputs[0]
    before: list[Node] = []
    if lengths is None:  # computed from sizes, as that of a chunk is
        if place < 0:
            return []
        starts, ends = f"{name} start", f"{name} end"
        for at, bound in ((place, starts), (place + 1, ends)):
            times = fixed(f"{bound} times", at, constants)
            before.append(replace(node, kind="Mul", inputs=(split, times), outputs=(bound,), attributes={}))
    else:
        bounds = bounds_of(lengths, place)
        if bounds is None:
            return []
        starts, ends = (fixed(f"{name} {end}", at, constants) for end, at in zip(("start", "end"), bounds, strict=True))
    axes = fixed(f"{name} axis", maker.get("axis", 0), constants)
    part = replace(node, kind="Slice", inputs=(given, starts, ends, axes), attributes={}, opset=13)
    if maker.get("keepdims", 1) or lengths is None or lengths.size > 1:
        return [*before, part]
    whole = f"{name} with its axis"
    return [
        replace(part, outputs=(whole,)),
        replace(node, kind="Squeeze", inputs=(whole, axes), attributes={}, opset=13),
    ]


def bounds_of(lengths: NDArray[Any], place: int) -> tuple[int, int] | None:
    """Return where a part begins and ends; None where that depends on the tensor's length."""
    if lengths.ndim == 0:
        step = int(lengths)
        if place >= 0:
            return place * step, (place + 1) * step
        return (place, MAX_SLICED_VALUES if place == -1 else place + 1) if step == 1 else None
    ends = list(accumulate(int(length) for length in lengths))
    if not -len(ends) <= place < len(ends):
        return None
    return ends[place] - int(lengths[place]), ends[place]


def fixed(name: str, value: int, constants: dict[str, NDArray[Any]]) -> str:
    """Add a number to the constants, and return its name."""
    constants[name] = np.asarray([value])
    return name
