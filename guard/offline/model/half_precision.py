"""A torch program of half precision (bfloat16, float16) as the same graph in float32.

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
RUN_ITEMS = 32  # at once


def half_formats(module: fx.GraphModule) -> tuple[str, ...]:
    """Return the names of the half-precision types that a graph computes in, as torch's export recorded them."""
    kinds = {value.dtype for node in module.graph.nodes if isinstance(value := node.meta.get("val"), Tensor)}
    return tuple(sorted(str(kind).removeprefix("torch.") for kind in kinds.intersection(HALVES)))


def widened(
    module: fx.GraphModule, narrow: Collection[torch.dtype] = HALVES, wide: torch.dtype = torch.float32
) -> fx.GraphModule:
    """Return a graph in a wider type, float32: weights, constants, casts, and what is recorded of each result."""
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
    """Widen a weight or constant by its dotted name; the module that it came from keeps its own."""
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
    """Return the wire's type for a program: FP16 where it takes float16; bfloat16 has none, its server casts FP32."""
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    return "FP16" if start.meta["val"].dtype == torch.float16 else "FP32"


def input_type(model: nn.Module, example: Tensor) -> torch.dtype:
    """Return the type of inputs that a module takes: float32, or its weights' half precision where that fails."""
    kinds = {parameter.dtype for parameter in model.parameters()}.intersection(HALVES)
    if not kinds:
        return torch.float32
    try:
        with torch.no_grad():
            model(example)
    except RuntimeError:  # torch's own for operands of two types
        return min(kinds, key=HALVES.index)
    return torch.float32
