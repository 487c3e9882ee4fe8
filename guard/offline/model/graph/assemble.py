"""Assembles a finished graph and its tensors to a module that can be called."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx, nn


def finished(tensors: Mapping[str, Tensor | nn.Module], graph: fx.Graph) -> fx.GraphModule:
    """Return the graph as a module, without the nodes whose result nothing reads."""
    module = fx.GraphModule(dict(tensors), graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return fx.GraphModule(module, module.graph)
