"""Folding of a batch normalisation into the layer before it.

What cannot be folded (a normalisation in front of its convolution, or one whose convolution another node reads)
becomes a 1x1 convolution with one filter a channel: ONNX Runtime keeps that in its blocked layout, and its adjoint is
in the table already.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx

from guard.errors import ModelError
from guard.offline.model.graph.canonical import plain
from guard.offline.model.graph.dropouts import DROPPED
from guard.offline.model.graph.shapes import shape
from guard.offline.model.graph.writer import attribute

aten = torch.ops.aten


def fold_batch_norm(module: fx.GraphModule) -> fx.GraphModule:
    """Return the same function without batch normalisation; other layers keep their names, `module` stays as it was."""
    folded = plain(module)
    for node in folded.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        scale, shift = scale_and_shift(folded, node)
        if _takes(node.args[0], node):
            layer = _merged(folded, node.args[0], scale, shift)
        elif len(shape(node)) == 4:
            layer = _channel_filters(folded, node, scale, shift)
        else:
            layer = _scaled(folded, node, scale, shift)
        if "layer" in node.meta:
            layer.meta["layer"] = node.meta["layer"]
        if DROPPED in node.meta:
            layer.meta[DROPPED] = node.meta[DROPPED]
        node.replace_all_uses_with(layer)
        folded.graph.erase_node(node)
    folded.graph.eliminate_dead_code()
    return fx.GraphModule(folded, folded.graph)


def scale_and_shift(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Return what a batch normalisation does to each channel: scale [channel] and shift [channel], in float64."""
    weight, bias, mean, variance = (_fixed(module, operand) for operand in node.args[1:5])
    epsilon = node.args[7]
    if mean is None or variance is None or not isinstance(epsilon, float):
        raise ModelError(f"{node.target} ({node.name}) has no statistics of its own; call eval() before exporting")
    scale = torch.rsqrt(variance + epsilon) * (1.0 if weight is None else weight)
    return scale, -mean * scale + (0.0 if bias is None else bias)


def _fixed(module: fx.GraphModule, operand: Any) -> Tensor | None:
    if operand is None:
        return None
    if not isinstance(operand, fx.Node) or operand.op != "get_attr":
        raise ModelError("a normalisation's or a layer's weights depend on the input; only fixed weights can be folded")
    return attribute(module, str(operand.target)).double()


def _takes(layer: Any, norm: fx.Node) -> bool:
    """Is this a convolution or linear layer with fixed weights that only the normalisation reads?"""
    if not isinstance(layer, fx.Node) or layer.target not in (aten.conv2d.default, aten.linear.default):
        return False
    if layer.target == aten.linear.default and len(shape(layer)) != 2:
        return False  # its channels are on another axis
    weights = [operand for operand in layer.args[1:3] if operand is not None]
    fixed = all(isinstance(operand, fx.Node) and operand.op == "get_attr" for operand in weights)
    return fixed and list(layer.users) == [norm]


def _merged(module: fx.GraphModule, layer: Any, scale: Tensor, shift: Tensor) -> fx.Node:
    weight = _fixed(module, layer.args[1])
    bias = _fixed(module, layer.args[2]) if len(layer.args) > 2 else None
    if weight is None:
        raise ModelError(f"{layer.name} has no weight")
    scaled = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    with module.graph.inserting_before(layer):
        filters = _attribute(module, f"{layer.name}_folded_weight", scaled, layer)
        offset = _attribute(module, f"{layer.name}_folded_bias", shift if bias is None else bias * scale + shift, layer)
    layer.args = (layer.args[0], filters, offset, *layer.args[3:])
    layer.meta.pop(DROPPED, None)  # it was of the values before the normalisation
    return cast(fx.Node, layer)


def _channel_filters(module: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor) -> fx.Node:
    with module.graph.inserting_before(node):
        filters = _attribute(module, f"{node.name}_scale", scale.reshape(-1, 1, 1, 1), node)
        offset = _attribute(module, f"{node.name}_shift", shift, node)
        arguments = (node.args[0], filters, offset, [1, 1], [0, 0], [1, 1], len(scale))
        return _like(node, module.graph.call_function(aten.conv2d.default, arguments))


def _scaled(module: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor) -> fx.Node:
    trailing = [1] * (len(shape(node)) - 2)
    with module.graph.inserting_before(node):
        factor = _attribute(module, f"{node.name}_scale", scale.reshape(-1, *trailing), node)
        offset = _attribute(module, f"{node.name}_shift", shift.reshape(-1, *trailing), node)
        product = _like(node, module.graph.call_function(aten.mul.Tensor, (node.args[0], factor)))
        return _like(node, module.graph.call_function(aten.add.Tensor, (product, offset)))


def _attribute(module: fx.GraphModule, name: str, value: Tensor, layer: fx.Node) -> fx.Node:
    """Write fixed numbers into the graph, in the type in which a layer computes."""
    value = value.to(layer.meta["val"].dtype)
    module.register_buffer(name, value)
    node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node


def _like(source: fx.Node, node: fx.Node) -> fx.Node:
    node.meta["val"] = source.meta["val"]
    return node
