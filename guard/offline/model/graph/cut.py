"""The model cut in two at a tap, through which everything passes that the logits depend on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from guard.offline.model.graph.writer import attribute

SIZE = torch.ops.aten.sym_size.int


def before(graph: fx.GraphModule, cut: str) -> fx.GraphModule:
    """Return the graph from images to the layer that the node `cut` computes."""
    first = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    first.graph_copy(graph.graph, copies)
    first.output(next(copy for node, copy in copies.items() if node.name == cut))
    return cleared(fx.GraphModule(graph, first))


def after(graph: fx.GraphModule, cut: str, between: Mapping[str, nn.Module]) -> fx.GraphModule:
    """Return the graph from (the layer at `cut`, a companion) to logits.

    Each module of `between` takes the layer of a later node and the companion, and its result replaces that layer.
    """
    last = fx.Graph()
    layer, companion = last.placeholder("layer"), last.placeholder("companion")
    copies: dict[fx.Node, fx.Node] = {}
    tensors: dict[str, Tensor | nn.Module] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            copies[node] = last.node_copy(node)
            tensors[str(node.target)] = attribute(graph, str(node.target))
        elif node.op == "output":
            last.output(copies[node.all_input_nodes[0]])
        elif node.name == cut:
            copies[node] = layer
        elif node.target is SIZE and node.args[1] == 0:
            copies[node] = last.call_function(SIZE, (layer, 0))  # how many items there are: the layer tells as well
        elif follows(node, copies):
            copies[node] = last.node_copy(node, copies.__getitem__)
            if node.name in between:
                tensors[name := f"between_{node.name}"] = between[node.name]
                copies[node] = last.call_module(name, (copies[node], companion))
    return cleared(fx.GraphModule(tensors, last))


def follows(node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> bool:
    """Tell whether a node reads what was copied and nothing else; others, and weights alone, lie before the cut."""
    read = node.all_input_nodes
    return all(operand in copies for operand in read) and any(operand.op != "get_attr" for operand in read)


def cleared(module: fx.GraphModule) -> fx.GraphModule:
    """Return the module in evaluation mode, without the nodes whose result nothing reads."""
    module.graph.eliminate_dead_code()
    return fx.GraphModule(module, module.graph).eval()
