"""Lowers a graph to one canonical form of each operator, so that later passes need to know that form alone.

The input is a graph of torch.export; the output computes the same, and
- has no guards, dropout, copies or in-place operators, and no bundles of results;
- has computed already whatever does not depend on the input;
- writes convolution, normalisation, pooling and attention in one way each, and knows the shape of every node.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.graph import _PyTreeCodeGen

from guard.errors import ModelError
from guard.offline.model.graph.assemble import finished
from guard.offline.model.graph.decompositions import SPELLINGS
from guard.offline.model.graph.dropouts import DROPPED
from guard.offline.model.graph.edges import EDGES
from guard.offline.model.graph.lines import LINES
from guard.offline.model.graph.mutation import changed_operand, first_name, forbid_late_readings
from guard.offline.model.graph.seed import Seed
from guard.offline.model.graph.volumes import VOLUMES
from guard.offline.model.graph.writer import GraphWriter, attribute

aten = torch.ops.aten
TABLES = (LINES, VOLUMES, EDGES, SPELLINGS)


def plain(module: fx.GraphModule) -> fx.GraphModule:
    """Return the same function of one batch in canonical form; `module` stays as it was, its tensors are shared.

    Raises: ModelError when the model takes more than one tensor, is in training mode, or holds what has no such form.
    """
    writer = GraphWriter()
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise ModelError(f"the model takes {len(inputs)} inputs; exactly one tensor is wanted")
    for node in module.graph.nodes:
        match node.op:
            case "placeholder":
                writer.written[node] = writer.placeholder(node)
            case "get_attr":
                writer.written[node] = attribute(module, str(node.target))
                writer.names[id(writer.written[node])] = str(node.target)
            case "call_function":
                _spell(writer, node)
            case "call_module" if isinstance(seed := module.get_submodule(str(node.target)), Seed):
                writer.written[node] = writer.seed(seed, writer.written[node.all_input_nodes[0]])
            case "output":
                writer.output(node.args[0], bare=_returns_bare(module, node))
            case _ if node.target != "_guards_fn":
                raise ModelError(
                    f"{node.op} {node.target} ({node.name}) is not an operator; give the graph of torch.export"
                )
    return finished(writer.tensors, writer.graph)


def _spell(writer: GraphWriter, node: fx.Node) -> None:
    """Write one operator in canonical form; an in-place operator becomes its twin that returns a new tensor."""
    target: Any = node.target
    arguments, keywords = fx.map_arg((node.args, node.kwargs), lambda operand: writer.written[operand])
    if target is operator.getitem and isinstance(arguments[0], tuple):
        writer.written[node] = arguments[0][int(str(arguments[1]))]
        return
    name = str(getattr(target, "_opname", ""))
    if name.startswith(("_assert", "sym_constrain")):
        writer.written[node] = None
        return
    changed = changed_operand(node)
    if changed is not None:
        forbid_late_readings(changed, node)
        target = twin(node)
    writer.source = node
    spelling = next((table[target] for table in TABLES if target in table), None)
    value = spelling(writer, *arguments, **keywords) if spelling else writer.call(target, *arguments, **keywords)
    if isinstance(value, fx.Node) and value.name.startswith(f"{node.name}_part"):
        value._rename(node.name)  # so that a layer is found under the name it had
        if "layer" in node.meta:
            value.meta["layer"] = node.meta["layer"]
    if isinstance(value, fx.Node) and DROPPED in node.meta:
        value.meta[DROPPED] = node.meta[DROPPED]
    writer.written[node] = value
    if changed is not None:
        for other in [other for other in writer.written if first_name(other) is first_name(changed)]:
            writer.written[other] = value


def twin(node: fx.Node) -> Any:
    """Return the operator that returns what an operator in place writes. Raises: ModelError where torch has none."""
    target: Any = node.target
    found = getattr(getattr(aten, target._opname.removesuffix("_"), None), target._overloadname, None)
    if found is None:
        raise ModelError(
            f"{target} ({node.name}) works in place, and torch has no operator that returns the same; write it out of "
            "place, and draw no random numbers in evaluation mode"
        )
    return found


def _returns_bare(module: fx.GraphModule, output: fx.Node) -> bool:
    """Does the function return one tensor itself, rather than a tuple of one?"""
    codegen = module.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        return bool(codegen.pytree_info.out_spec is not None and codegen.pytree_info.out_spec.is_leaf())
    return isinstance(output.args[0], fx.Node)
