"""A torch program of half precision (bfloat16, float16), or of double, as the same graph in float32.

Rule 1. Only types change: each operator, its order and its name stay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

HALVES = (torch.bfloat16, torch.float16)
OTHERS = (*HALVES, torch.float64)  # that weights may have in the place of float32
WIRE = {torch.float16: "FP16", torch.float64: "FP64"}  # of the types that inputs may have
RUN_ITEMS = 32  # at once


def other_formats(module: fx.GraphModule) -> tuple[str, ...]:
    """Return the names of the other types than float32 that a graph computes in, as torch's export recorded them.

    Double precision counts where weights or inputs have it: a sum in it is a float32 network's own.
    """
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    given = [value.dtype for value in (*module.parameters(), start.meta["val"])]
    kinds = {value.dtype for node in module.graph.nodes if isinstance(value := node.meta.get("val"), Tensor)}
    found = kinds.intersection(HALVES) | {torch.float64}.intersection(given)
    return tuple(sorted(str(kind).removeprefix("torch.") for kind in found))


def widened(
    module: fx.GraphModule, narrow: Collection[torch.dtype] = OTHERS, wide: torch.dtype = torch.float32
) -> fx.GraphModule:
    """Return a graph in another type, float32: weights, constants, casts, and what is recorded of each result."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, copies))
    found = fx.GraphModule(module, graph)
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # of the types that were
            graph.erase_node(node)
            continue
        node.args = fx.node.map_aggregate(node.args, lambda one: wide if one in narrow else one)
        node.kwargs = fx.node.map_aggregate(node.kwargs, lambda one: wide if one in narrow else one)
        if node.op == "get_attr":
            widen_attribute(found, str(node.target), narrow, wide)
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype in narrow:
            node.meta["val"] = value.to(wide)
    found.recompile()
    return found


def widen_attribute(module: nn.Module, target: str, narrow: Collection[torch.dtype], wide: torch.dtype) -> None:
    """Bring a weight or constant, by its dotted name, to a type; the module that it came from keeps its own."""
    path, _, name = target.rpartition(".")
    owner = module.get_submodule(path)
    value = getattr(owner, name)
    if not isinstance(value, Tensor) or value.dtype not in narrow:
        return
    other = value.detach().to(wide)
    setattr(owner, name, nn.Parameter(other, requires_grad=False) if isinstance(value, nn.Parameter) else other)


def answers_of(module: fx.GraphModule) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """Return a program's own answers to wire values, which are cast to the type that it takes."""
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    kind = start.meta["val"].dtype

    def answers(wire: NDArray[np.float32]) -> NDArray[Any]:
        with torch.no_grad():
            parts = torch.from_numpy(np.ascontiguousarray(wire)).to(kind).split(RUN_ITEMS)
            found: NDArray[Any] = torch.cat([module(part) for part in parts]).double().numpy()
        return found

    return answers


def input_datatype(module: fx.GraphModule) -> str:
    """Return the wire's type for a program, that of its inputs; bfloat16 has none, its server casts FP32."""
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    return WIRE.get(start.meta["val"].dtype, "FP32")


def input_type(model: nn.Module, example: Tensor) -> torch.dtype:
    """Return the type of inputs that a module takes: float32, or that of its weights where that fails."""
    kinds = {parameter.dtype for parameter in model.parameters()}.intersection(OTHERS)
    if not kinds:
        return torch.float32
    try:
        with torch.no_grad():
            model(example)
    except RuntimeError:  # torch's own for operands of two types
        return min(kinds, key=OTHERS.index)
    return torch.float32
