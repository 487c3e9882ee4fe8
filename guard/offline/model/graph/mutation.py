"""Mutation in a graph: operators in place that change a tensor which is read later under another name.

How it works. An in-place operator becomes its twin that returns a new tensor, and what reads the changed tensor by
its own name reads that. A view of it, made before, or what it is a view of, would still show what was there.

Example: `mask = zeros(4, 4); mask[:2] = 1` fills a view, rows 0 and 1, and what reads `mask` later reads it changed.
"""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload

from guard.errors import ModelError
from guard.offline.model.graph.decompositions import SAME


def changed_operand(node: fx.Node) -> fx.Node | None:
    """Return the operand that an operator changes in place; None for all others."""
    name = str(getattr(node.target, "_opname", ""))
    operand = node.args[0] if name.endswith("_") and not name.endswith("__") and node.args else None
    return operand if isinstance(operand, fx.Node) else None


def late_reading(changed: fx.Node, by: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return a view of what `by` changes in place, made before it, and an operator that reads the view after it."""

    def base(node: fx.Node) -> fx.Node:
        shares = isinstance(node.target, OpOverload) and (node.target.is_view or node.target in SAME)
        return base(node.all_input_nodes[0]) if shares and node.all_input_nodes else node

    for node in by.graph.nodes:
        if node is not changed and node.op != "output" and node < by and base(node) is base(changed):
            for reader in node.users:
                if reader > by:
                    return node, reader
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
