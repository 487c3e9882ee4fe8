"""Operators of a graph for which the table of adjoints has no rule."""

from __future__ import annotations

from torch import fx

from guard.offline.model.gradient.input_gradient import ADJOINTS, live
from guard.offline.model.graph.canonical import plain
from guard.offline.model.graph.mutation import first_late_reading


def without_adjoint(graph: fx.GraphModule) -> list[str]:
    """Return the operators between input and output that cannot be differentiated, as `operator (node)`.

    A graph that reads later what was changed in place has no canonical form, and counts as one such operator.

    Raises: ModelError as `plain` does.
    """
    if (late := first_late_reading(graph.graph)) is not None:
        return [f"{late.target} ({late.name}), which changes in place what is read later (copy it first),"]
    canonical = plain(graph).graph
    nodes = [node for node in live(canonical) if node.op == "call_function" and node.target not in ADJOINTS]
    return [f"{node.target} ({node.name})" for node in nodes]
