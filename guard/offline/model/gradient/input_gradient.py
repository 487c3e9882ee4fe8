"""The input gradient of a classifier, written into its graph: the table of adjoints and the walk that uses it.

Rule 1. The forward pass runs once; the backward part reads its nodes.
Rule 2. Weights are frozen: only what the input can move is differentiated.
Rule 3. The result is ordinary torch: it runs as it is, can be differentiated again, and exports with a free batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from guard.errors import GuardError, ModelError, first_line
from guard.offline.model.gradient.rules import (
    arithmetic,
    convolution,
    matrix,
    max_pool,
    normalisation,
    pointwise,
    remainder,
    separable,
    shape,
    trigonometric,
)
from guard.offline.model.gradient.tape import Rule, Tape, batched
from guard.offline.model.graph.assemble import finished
from guard.offline.model.graph.canonical import plain
from guard.offline.model.graph.seed import Seed

aten = torch.ops.aten
CASTS = {aten.to.dtype, aten._to_copy.default}
COMPARISONS = {getattr(getattr(aten, n), k) for n in ("eq", "ne", "gt", "ge", "lt", "le") for k in ("Tensor", "Scalar")}

Adjoints: TypeAlias = Mapping[OpOverload, Rule]  # `{**ADJOINTS, operator: rule}` is another table

ADJOINTS: Adjoints = {
    **pointwise.RULES,
    **arithmetic.RULES,
    **convolution.RULES,
    **max_pool.RULES,
    **separable.RULES,
    **matrix.RULES,
    **normalisation.RULES,
    **remainder.RULES,
    **shape.RULES,
    **trigonometric.RULES,
}


def smooth_adjoints(sharpness: float) -> Adjoints:
    """Return the table for differentiating twice: a step gets the derivative of sigmoid(sharpness * x)."""
    return {**ADJOINTS, **pointwise.smooth_rules(sharpness)}


ADJOINTS_SMOOTH = smooth_adjoints(10.0)


def top_class(logits: Tensor) -> Tensor:
    """Return the seed [item, class] that picks each item's predicted class: 1 there, 0 elsewhere."""
    return (torch.arange(logits.shape[1], device=logits.device) == logits.argmax(1, keepdim=True)).to(logits.dtype)


@dataclass(frozen=True)
class Backward:
    """Backward pass through a graph: where it starts, by which table it goes, and over which part of the batch.

    Where the batch is `parts` parts of equal size (items, then their copies), it runs over the first part alone.
    """

    seed: Callable[[Tensor], Tensor]
    adjoints: Adjoints
    output: int = 0
    parts: int = 1


def with_gradient(
    module: fx.GraphModule, *, seed: Callable[[Tensor], Tensor], output: int = 0, adjoints: Adjoints = ADJOINTS
) -> fx.GraphModule:
    """Return a graph with one more output: the gradient, shaped as the input, of `output` along its seed.

    `seed` turns that output into the cotangent of a vector-Jacobian product, e.g. `top_class`. The result can be given
    in again, for another output, seed or table; each costs one backward.

    Raises: ModelError naming operator and node, where an operator on the way has no rule in the table.
    """
    return with_backwards(module, [Backward(seed, adjoints, output)])


def with_backwards(module: fx.GraphModule, backwards: Sequence[Backward]) -> fx.GraphModule:
    """Return a graph with one more output for each backward: what it sends to the input, shaped as its part of that.

    Raises: ModelError as `with_gradient` does.
    """
    source = plain(module)
    graph = fx.Graph()
    results = graph.graph_copy(source.graph, {})
    outputs = [node for node in tree_leaves(results) if isinstance(node, fx.Node)]
    tensors: dict[str, Tensor | nn.Module] = {**dict(source.named_buffers()), **dict(source.named_children())}
    moved, forward = live(graph), batched(graph)
    sent = []
    for one in backwards:
        tape = Tape(graph, tensors, moved, one.parts, forward)
        start = outputs[one.output]
        tensors[name := f"seed_for_{start.name}_{len(tensors)}"] = Seed(one.seed)
        along = graph.call_module(name, (tape.own(start),))
        sent.append(_backward(tape, start, along, one.adjoints))
    graph.output((*outputs, *sent))
    return finished(tensors, graph)


def _backward(tape: Tape, start: fx.Node, along: fx.Node, adjoints: Adjoints) -> fx.Node:
    """Walk from `start` back to the input, adding up the cotangents that reach each node; return the input's."""
    arrived: dict[fx.Node, list[fx.Node]] = {start: [along]}
    for node in reversed([node for node in tape.graph.nodes if node in tape.live]):
        if node not in arrived:
            continue
        gradient = _sum(tape, arrived.pop(node))
        if node.op == "placeholder":
            return gradient
        rule = adjoints.get(node.target)
        if rule is None:
            raise ModelError(f"{node.target} ({node.name}) has no adjoint; the table holds {len(adjoints)} operators")
        for operand, sent in _sent(rule, tape, node, gradient):
            if operand in tape.live:
                arrived.setdefault(operand, []).append(sent)
    raise ModelError(f"the output {start.name} does not depend on the input through anything differentiable")


def _sent(rule: Rule, tape: Tape, node: fx.Node, gradient: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Return what a rule sends to each operand. Raises: ModelError naming the node, whatever the rule stumbles over."""
    tape.at = f"{node.target} ({node.name})"
    try:
        return list(rule(tape, node, gradient))
    except GuardError:
        raise
    except Exception as error:  # a rule meets whatever arguments torch's operator takes
        raise ModelError(
            f"{tape.at} has no adjoint for the arguments that it has here, {node.args[1:]} {dict(node.kwargs)}: "
            f"{first_line(error)}; write it with its usual arguments"
        ) from error


def _sum(tape: Tape, parts: list[fx.Node]) -> fx.Node:
    """Add up cotangents; a `weave` that ends all of them (strided convolutions) is done once, to their sum."""
    first, *rest = parts
    woven = convolution.weave
    if rest and all(part.target is woven and part.args[1:] == first.args[1:] for part in parts):
        inner = [part.args[0] for part in parts if isinstance(part.args[0], fx.Node)]
        return tape.call(woven, _sum(tape, inner), *first.args[1:])
    for part in rest:
        first = tape.call(torch.ops.aten.add.Tensor, first, part)
    return first


def live(graph: fx.Graph) -> frozenset[fx.Node]:
    """Return the nodes that a change of the input moves: not steps, as comparisons, codes and the number of items."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if is_step(node):
            continue
        if node.op == "placeholder" or any(operand in found for operand in node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def is_step(node: fx.Node) -> bool:
    """Tell whether a node holds whole numbers or truth, compares or casts to them: it passes no gradient on."""
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt):
        return True
    if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
        return True
    if node.target in COMPARISONS:
        return True
    kinds = [one for one in (*node.args, *node.kwargs.values()) if isinstance(one, torch.dtype)]
    return node.target in CASTS and any(not kind.is_floating_point for kind in kinds)
