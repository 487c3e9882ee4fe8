"""Adjoints of operators that couple the numbers along an axis: softmax, layer normalisation, sums and means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from guard.offline.model.gradient.tape import Rule, Sent, Tape, from_output
from guard.offline.model.graph.shapes import shape, static

aten = torch.ops.aten


def softmax(gradient: Tensor, output: Tensor, axis: int) -> Tensor:
    return output * (gradient - (gradient * output).sum(axis, keepdim=True))


def log_softmax(gradient: Tensor, output: Tensor, axis: int) -> Tensor:
    return gradient - torch.exp(output) * gradient.sum(axis, keepdim=True)


def layer_norm(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradient through layer_norm(operand, sizes, weight, bias, epsilon)."""
    operand, sizes, weight = (*node.args, None)[:3]
    epsilon = node.args[4] if len(node.args) > 4 else 1e-5
    if isinstance(operand, fx.Node) and isinstance(sizes, Sequence):
        weighted = gradient if weight is None else tape.call(aten.mul.Tensor, gradient, weight)
        yield operand, tape.call(normalised, weighted, operand, list(range(-len(sizes), 0)), epsilon)


def group_norm(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradient through group_norm(operand, groups, weight, bias, epsilon)."""
    operand, groups, weight = (*node.args, None)[:3]
    epsilon = node.args[4] if len(node.args) > 4 else 1e-5
    if isinstance(operand, fx.Node):
        if weight is not None:
            shaped = tape.tensor(weight, node).reshape(-1, *[1] * (len(shape(operand)) - 2))
            gradient = tape.call(aten.mul.Tensor, gradient, tape.constant(f"{node.name}_adjoint", shaped))
        yield operand, tape.call(normalised_groups, gradient, operand, groups, epsilon)


def normalised_groups(gradient: Tensor, operand: Tensor, groups: int, epsilon: float) -> Tensor:
    axes = list(range(2, operand.dim() + 1))
    gradient, operand = gradient.unflatten(1, (groups, -1)), operand.unflatten(1, (groups, -1))
    return normalised(gradient, operand, axes, epsilon).flatten(1, 2)


def normalised(gradient: Tensor, operand: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """Return the gradient through (x - mean) / deviation: what would move the mean or the deviation is taken out."""
    centred = operand - operand.mean(axes, keepdim=True)
    scale = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    unit = centred * scale
    along = (gradient * unit).mean(axes, keepdim=True)
    return scale * (gradient - gradient.mean(axes, keepdim=True) - unit * along)


def _axes(node: fx.Node) -> list[int]:
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    rank = len(shape(node.args[0]))
    axes = [given] if isinstance(given, int) else list(given) if isinstance(given, Sequence) else []
    return sorted(int(str(axis)) % rank for axis in axes) or list(range(rank))


def _spread(tape: Tape, node: fx.Node, gradient: fx.Node, operand: fx.Node) -> fx.Node:
    axes = _axes(node)
    if len(shape(node)) < len(shape(operand)):
        for axis in axes:
            gradient = tape.call(aten.unsqueeze.default, gradient, axis)
    wanted = [static(operand, axis)[0] if axis in axes else -1 for axis in range(len(shape(operand)))]
    return tape.call(aten.expand.default, gradient, wanted)


def batch_norm(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradient through a batch normalisation that was not folded away: a product with its scale."""
    operand, weight, _, _, variance = node.args[:5]
    if isinstance(operand, fx.Node):
        fixed = tape.tensor(variance, node)
        scale = torch.rsqrt(fixed.double() + float(str(node.args[7])))
        if weight is not None:
            scale = scale * tape.tensor(weight, node)
        shaped = scale.to(fixed.dtype).reshape(-1, *[1] * (len(shape(operand)) - 2))
        yield operand, tape.call(aten.mul.Tensor, gradient, tape.constant(f"{node.name}_adjoint", shaped))


def total(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    operand = node.args[0]
    if isinstance(operand, fx.Node):
        yield operand, _spread(tape, node, gradient, operand)


def mean(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    operand = node.args[0]
    if isinstance(operand, fx.Node):
        count = torch.Size(static(operand, *_axes(node))).numel()
        yield operand, _spread(tape, node, tape.call(aten.mul.Tensor, gradient, 1.0 / count), operand)


RULES: Mapping[OpOverload, Rule] = {
    aten.softmax.int: from_output(softmax),
    aten.log_softmax.int: from_output(log_softmax),
    aten.batch_norm.default: batch_norm,
    aten.layer_norm.default: layer_norm,
    aten.group_norm.default: group_norm,
    aten.sum.dim_IntList: total,
    aten.mean.dim: mean,
}
