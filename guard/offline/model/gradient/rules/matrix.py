"""Adjoints of linear layers and matrix products."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from guard.errors import ModelError
from guard.offline.model.gradient.tape import Rule, Sent, Tape, reduced
from guard.offline.model.graph.shapes import shape

aten = torch.ops.aten


def linear(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradient through linear(x, weight [out, in], bias): a product with the weight as it is stored."""
    operand, weight = node.args[:2]
    if tape.is_live(weight):
        raise ModelError(f"{node.target} ({node.name}) has weights that depend on the input; write it as a matmul")
    if isinstance(operand, fx.Node):
        yield operand, tape.call(aten.matmul.default, gradient, weight)


def product(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradients through matmul, mm and bmm of two matrices or two stacks of them."""
    yield from _product(tape, node, gradient, *node.args[:2])


def shifted_product(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    """Yield the gradients through addmm and baddbmm: beta * shift + alpha * left @ right."""
    shift, left, right = node.args[:3]
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    if isinstance(shift, fx.Node) and tape.is_live(shift):
        scaled = gradient if beta == 1 else tape.call(aten.mul.Tensor, gradient, beta)
        yield shift, reduced(tape, scaled, shift, node)
    scaled = gradient if alpha == 1 else tape.call(aten.mul.Tensor, gradient, alpha)
    yield from _product(tape, node, scaled, left, right)


def _product(tape: Tape, node: fx.Node, gradient: fx.Node, left: object, right: object) -> Sent:
    if min(len(shape(left)), len(shape(right))) < 2:
        raise ModelError(f"{node.target} ({node.name}) multiplies by a vector; only matrices have an adjoint here")
    if isinstance(left, fx.Node) and tape.is_live(left):
        yield left, reduced(tape, tape.call(times_transposed, gradient, right), left, node)
    if isinstance(right, fx.Node) and tape.is_live(right):
        yield right, reduced(tape, tape.call(transposed_times, left, gradient), right, node)


def times_transposed(left: Tensor, right: Tensor) -> Tensor:
    return torch.matmul(left, right.transpose(-2, -1))


def transposed_times(left: Tensor, right: Tensor) -> Tensor:
    return torch.matmul(left.transpose(-2, -1), right)


RULES: Mapping[OpOverload, Rule] = {
    aten.linear.default: linear,
    aten.matmul.default: product,
    aten.mm.default: product,
    aten.bmm.default: product,
    aten.addmm.default: shifted_product,
    aten.baddbmm.default: shifted_product,
}
