"""Mutation in a graph: operators in place that change a tensor which is read later under another name.

How it works. An in-place operator becomes its twin that returns a new tensor, and what reads the changed tensor by
its own name reads that. A view of it, made before, or what it is a view of, would still show what was there.

Examples: `mask = zeros(4, 4); mask[:2] = 1` fills a view, rows 0 and 1, and what reads `mask` later reads it changed.
Of `a, b = x.chunk(2, 1)` both are views of x, and neither of the other: `a.mul_(3)` changes x, and b stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx
from torch._ops import OpOverload

from guard.errors import ModelError
from guard.offline.model.graph.decompositions import SAME

aten = torch.ops.aten
# Operators that may return their operands or views of them, though their schemas do not say so.
UNDECLARED_VIEWS = {
    aten.unsafe_chunk.default,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
    aten.einsum.default,
    aten.type_as.default,
    aten.broadcast_tensors.default,
    aten.meshgrid.default,
    aten.meshgrid.indexing,
    aten.atleast_1d.default,
    aten.atleast_2d.default,
    aten.atleast_3d.default,
    aten.atleast_1d.Sequence,
    aten.atleast_2d.Sequence,
    aten.atleast_3d.Sequence,
    aten.cartesian_prod.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}


def changed_operand(node: fx.Node) -> fx.Node | None:
    """Return the operand that an operator changes in place; None for all others."""
    name = str(getattr(node.target, "_opname", ""))
    operand = node.args[0] if name.endswith("_") and not name.endswith("__") and node.args else None
    return operand if isinstance(operand, fx.Node) else None


def first_name(node: fx.Node) -> fx.Node:
    """Return the node that made a tensor, of which operators in place are further names."""
    while (changed := changed_operand(node)) is not None:
        node = changed
    return node


def shared_operands(node: fx.Node) -> list[fx.Node]:
    """Return the operands whose memory an operator's result may share: it is a view of them, or they themselves."""
    if node.target in UNDECLARED_VIEWS:
        return node.all_input_nodes
    if node.target is operator.getitem:
        bundle = node.all_input_nodes[0]
        return [bundle] if shared_operands(bundle) else []
    views = isinstance(node.target, OpOverload) and (node.target.is_view or node.target in SAME)
    return node.all_input_nodes[:1] if views or changed_operand(node) is not None else []


def lineage(node: fx.Node) -> Iterator[fx.Node]:
    """Yield a node, what it is a view or another name of, what that is a view of, and so on."""
    yield node
    for operand in shared_operands(node):
        yield from lineage(operand)


def places(line: list[fx.Node]) -> dict[object, object]:
    """Return of which splits a line of views takes a part, and which part: two parts of a split share no memory."""
    parts = [node for node in line if node.target is operator.getitem]
    return {part.args[0]: part.args[1] for part in parts if getattr(part.all_input_nodes[0].target, "is_view", False)}


def overlap(left: list[fx.Node], right: list[fx.Node]) -> bool:
    """Tell whether two lines of views may share memory."""
    taken, other = places(left), places(right)
    if any(taken[split] != other[split] for split in taken.keys() & other.keys()):
        return False
    return not set(left).isdisjoint(right)


def late_reading(changed: fx.Node, by: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return a view of what `by` changes in place, made before it, and an operator that reads the view after it."""
    line = list(lineage(changed))
    for node in by.graph.nodes:
        late = [reader for reader in node.users if reader > by] if node.op != "output" and node < by else []
        if late and first_name(node) is not first_name(changed) and overlap(list(lineage(node)), line):
            return node, late[0]
    return None


def forbid_late_readings(changed: fx.Node, by: fx.Node) -> None:
    """Refuse an in-place operator if a view of its operand, which it changes too, is read afterwards: ModelError."""
    if found := late_reading(changed, by):
        node, reader = found
        raise ModelError(
            f"{by.target} ({by.name}) changes {node.name} in place, which {reader.name} reads; copy it first"
        )


def first_late_reading(graph: fx.Graph) -> fx.Node | None:
    """Return the first operator that changes in place what is read later under another name; None without one."""
    for node in graph.nodes:
        if (changed := changed_operand(node)) is not None and late_reading(changed, node):
            return node  # type: ignore[no-any-return]
    return None
