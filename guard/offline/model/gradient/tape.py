"""The tape: what a rule of the adjoint table may see of the graph, and what it may write.

Rule 1. A rule only appends: forward nodes are read, never changed.
Rule 2. What a rule appends is differentiable torch, out of place: an attacker can differentiate the gradient again.
Rule 3. Nothing about the batch is fixed: sizes come from `shape`, where the batch reads None.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from guard.errors import ModelError
from guard.offline.model.graph.shapes import shape

ADJOINT_OF = "adjoint_of"  # of a node of the backward, the operator whose adjoint it is part of
Sent: TypeAlias = Iterable[tuple[fx.Node, fx.Node]]  # (an operand, the gradient that reaches it)


@dataclass
class Tape:
    """The graph under construction, the tensors it refers to, and the forward nodes that the input can move.

    `parts` above 1: the batch is so many parts of equal size, and the backward is that of the first part alone.
    """

    graph: fx.Graph
    tensors: dict[str, Tensor | nn.Module]
    live: frozenset[fx.Node]
    parts: int = 1
    forward: frozenset[fx.Node] = frozenset()  # nodes of which the batch is an axis
    first: dict[fx.Node, fx.Node] = field(default_factory=dict)  # forward node -> its first part
    at: str = ""  # the operator whose adjoint is being written

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> fx.Node:
        """Append one call; `function` is an aten operator or a plain function of tensors at the top of a module."""
        arguments, keywords = fx.map_arg((arguments, keywords), self.own)
        if isinstance(function, FunctionType):
            inspect.signature(function).bind(*arguments, **keywords)  # now, not when the gradient is first computed
        node = self.graph.call_function(function, arguments, keywords)
        node.meta[ADJOINT_OF] = self.at
        return node

    def own(self, node: fx.Node) -> fx.Node:
        """Return the part of a forward node that the backward reads; any other node as it is."""
        if self.parts == 1 or node not in self.forward:
            return node
        if node not in self.first:
            axis = shape(node).index(None)
            self.first[node] = self.graph.call_function(first_part, (node, axis, self.parts))
        return self.first[node]

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """Store a tensor that is computed now, so that nothing is flipped, summed or gathered at run time."""
        while name in self.tensors:  # of a gradient that the graph holds already
            name += "_"
        self.tensors[name] = value.detach().contiguous()
        node = self.graph.get_attr(name)
        node.meta["val"] = self.tensors[name]
        return node

    def tensor(self, operand: Any, node: fx.Node) -> Tensor:
        """Return the frozen tensor behind an operand of `node`.

        Raises: ModelError when it is computed from the input, as in a network that makes its own filters.
        """
        if isinstance(operand, fx.Node) and operand.op == "get_attr":
            value = self.tensors[str(operand.target)]
            if isinstance(value, Tensor):
                return value.detach()
        raise ModelError(
            f"{node.target} ({node.name}) has weights that depend on the input; only fixed weights have an adjoint here"
        )

    def is_live(self, operand: Any) -> bool:
        return isinstance(operand, fx.Node) and operand in self.live


def batched(graph: fx.Graph) -> frozenset[fx.Node]:
    """Return the nodes of which the batch is an axis: those that follow from the input, but for sizes."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        follows = node.op == "placeholder" or any(operand in found for operand in node.all_input_nodes)
        if follows and node.op != "output" and isinstance(node.meta.get("val"), Tensor) and None in shape(node):
            found.add(node)
    return frozenset(found)


def first_part(value: Tensor, axis: int, parts: int) -> Tensor:
    """Return the first of so many equal parts along the batch."""
    first: Tensor = value.unflatten(axis, (parts, -1)).select(axis, 0)
    return first


Rule: TypeAlias = Callable[[Tape, fx.Node, fx.Node], Sent]  # (tape, forward node, gradient at its output)


def from_output(function: Callable[..., Tensor], **more: Any) -> Rule:
    """Make the rule of an operator of one tensor from `function(gradient, output, *settings)`."""
    return _unary(function, lambda node: [node], more)


def from_operand(function: Callable[..., Tensor], **more: Any) -> Rule:
    """Make the rule of an operator of one tensor from `function(gradient, operand, *settings)`."""
    return _unary(function, lambda node: [node.args[0]], more)


def from_both(function: Callable[..., Tensor], **more: Any) -> Rule:
    """Make the rule of an operator of one tensor from `function(gradient, output, operand, *settings)`."""
    return _unary(function, lambda node: [node, node.args[0]], more)


def from_gradient(function: Callable[..., Tensor], **more: Any) -> Rule:
    """Make the rule of a linear operator of one tensor from `function(gradient, *settings)`."""
    return _unary(function, lambda _: [], more)


def _unary(function: Callable[..., Tensor], needed: Callable[[fx.Node], list[Any]], more: dict[str, Any]) -> Rule:
    def rule(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
        operand, *settings = node.args
        if isinstance(operand, fx.Node):
            yield operand, tape.call(function, gradient, *needed(node), *settings, **node.kwargs, **more)

    rule.__name__ = rule.__qualname__ = function.__name__
    return rule


def reduced(tape: Tape, gradient: fx.Node, operand: fx.Node, node: fx.Node) -> fx.Node:
    """Undo broadcasting: sum the gradient at `node` over the axes along which `operand` was repeated."""
    small, large = shape(operand), shape(node)
    extra = len(large) - len(small)
    repeated = [axis for axis in range(extra, len(large)) if small[axis - extra] == 1 and large[axis] != 1]
    if repeated:
        gradient = tape.call(torch.ops.aten.sum.dim_IntList, gradient, repeated, True)
    if extra:
        gradient = tape.call(torch.ops.aten.sum.dim_IntList, gradient, list(range(extra)))
    return gradient
