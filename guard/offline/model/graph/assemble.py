"""A finished graph becomes a module that can be called."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx, nn


def finished(tensors: Mapping[str, Tensor | nn.Module], graph: fx.Graph) -> fx.GraphModule:
    """The graph as a module, without what nothing reads."""
    module = fx.GraphModule(dict(tensors), graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return fx.GraphModule(module, module.graph)
