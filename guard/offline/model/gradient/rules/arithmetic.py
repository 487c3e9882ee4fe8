"""Adjoints of arithmetic between tensors, with broadcasting undone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from guard.offline.model.gradient.rules.pointwise import off_zero
from guard.offline.model.gradient.tape import Rule, Sent, Tape, reduced
from guard.offline.model.graph.edges import is_above_zero

aten = torch.ops.aten


def quotient(gradient: Tensor, output: Tensor, divisor: Tensor) -> Tensor:
    """Return the part of a division's gradient that reaches its divisor."""
    return -gradient * output / divisor


def share(gradient: Tensor, divisor: Tensor) -> Tensor:
    """Return the part of a division's gradient that reaches what is divided; 0 where that is divided by 0."""
    return gradient / off_zero(divisor)


def quotient_off_zero(gradient: Tensor, dividend: Tensor | float, divisor: Tensor) -> Tensor:
    """Return the same part as `quotient`; 0 where it is divided by 0, where the output is no number."""
    divisor = off_zero(divisor)
    return -(gradient / divisor) * (dividend / divisor)


def _scaled(tape: Tape, gradient: fx.Node, factor: Any) -> fx.Node:
    return gradient if factor == 1 else tape.call(aten.mul.Tensor, gradient, factor)


def _to(tape: Tape, operand: Any, gradient: fx.Node, node: fx.Node) -> Sent:
    if tape.is_live(operand):
        yield operand, reduced(tape, gradient, operand, node)


def add(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    left, right = node.args[:2]
    yield from _to(tape, left, gradient, node)
    if tape.is_live(right):
        yield from _to(tape, right, _scaled(tape, gradient, node.kwargs.get("alpha", 1)), node)


def subtract(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    left, right = node.args[:2]
    yield from _to(tape, left, gradient, node)
    if tape.is_live(right):
        yield from _to(tape, right, _scaled(tape, gradient, -_factor(node)), node)


def subtract_from(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    yield from _to(tape, node.args[0], _scaled(tape, gradient, -_factor(node)), node)


def _factor(node: fx.Node) -> float:
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    return alpha if isinstance(alpha, int | float) else 1


def multiply(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    left, right = node.args[:2]
    if tape.is_live(left):
        yield from _to(tape, left, tape.call(aten.mul.Tensor, gradient, right), node)
    if tape.is_live(right):
        yield from _to(tape, right, tape.call(aten.mul.Tensor, gradient, left), node)


def divide(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    left, right = node.args[:2]
    zeros = tape.is_live(right) and not is_above_zero(tape.tensors, right)
    if tape.is_live(left):
        yield from _to(tape, left, tape.call(share if zeros else aten.div.Tensor, gradient, right), node)
    if tape.is_live(right):
        function, read = (quotient_off_zero, left) if zeros else (quotient, node)
        yield from _to(tape, right, tape.call(function, gradient, read, right), node)


def choose(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
    condition, left, right = node.args
    if tape.is_live(left):
        yield from _to(tape, left, tape.call(aten.where.ScalarOther, condition, gradient, 0.0), node)
    if tape.is_live(right):
        yield from _to(tape, right, tape.call(aten.where.ScalarSelf, condition, 0.0, gradient), node)


RULES: Mapping[OpOverload, Rule] = {
    aten.add.Tensor: add,
    aten.add.Scalar: add,
    aten.sub.Tensor: subtract,
    aten.sub.Scalar: subtract,
    aten.rsub.Scalar: subtract_from,
    aten.mul.Tensor: multiply,
    aten.mul.Scalar: multiply,
    aten.div.Tensor: divide,
    aten.div.Scalar: divide,
    aten.where.self: choose,
    aten.where.ScalarSelf: choose,
    aten.where.ScalarOther: choose,
}
