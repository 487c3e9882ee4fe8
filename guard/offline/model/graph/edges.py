"""Functions that are finite at an edge of their domain and infinitely steep there: roots at 0, arc functions at 1.

Rule 1. Each is written so that its slope at the edge itself is 0, for torch's autograd and for our adjoints; what it
computes is the same for every number.

How it works. Infinity times the 0 that a dead channel or a black pixel sends on is not a number, and takes the whole
gradient with it. torch's own norms and deviations send back 0 there, but written as a sum and a root, as ONNX writes
them, they would not. Example: sqrt(x) becomes where(x == 0, 0, sqrt(where(x == 0, 1, x))).

Logarithms, reciprocals and their like are infinite themselves at their edge, and stay as they are; that our adjoints
send back 0 there, too, is in their rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from guard.offline.model.graph.writer import GraphWriter

aten = torch.ops.aten
KEEPING_SIGN = {aten.expand.default, aten.expand_as.default, aten.unsqueeze.default, aten.reshape.default}
KEEPING_SIGN |= {aten.sqrt.default, aten.squeeze.dim}
SUMS, LOWER_LIMITS = (aten.add.Tensor, aten.add.Scalar), (aten.clamp.default, aten.clamp_min.default)


def square_root(writer: GraphWriter, operand: Any) -> Any:
    return off_zero(writer, aten.sqrt.default, operand)


def power(writer: GraphWriter, operand: Any, exponent: Any) -> Any:
    """Write a power; the slope of one between 0 and 1 is infinite at 0, and x to the power of 0 is 1 everywhere."""
    if exponent == 0:
        return writer.call(aten.ones_like.default, operand)
    if isinstance(exponent, int | float) and 0 < exponent < 1:
        return off_zero(writer, aten.pow.Tensor_Scalar, operand, exponent)
    return writer.call(aten.pow.Tensor_Scalar, operand, exponent)


def off_zero(writer: GraphWriter, function: OpOverload, operand: Any, *settings: Any) -> Any:
    """Write a function that is 0 at 0, where its slope is infinite."""
    if is_fixed(operand) or is_off_edge(operand) or is_above_zero(writer.tensors, operand):
        return writer.call(function, operand, *settings)
    edge = writer.call(aten.eq.Scalar, operand, 0)
    inside = writer.call(function, writer.call(aten.where.ScalarSelf, edge, 1.0, operand), *settings)
    return writer.call(aten.where.ScalarSelf, edge, 0.0, inside)


def arc_sine(writer: GraphWriter, operand: Any) -> Any:
    return off_one(writer, aten.asin.default, operand, lambda end: writer.call(aten.mul.Tensor, end, math.pi / 2))


def arc_cosine(writer: GraphWriter, operand: Any) -> Any:
    def at_end(end: Any) -> Any:
        return writer.call(aten.mul.Tensor, writer.call(aten.rsub.Scalar, end, 1.0), math.pi / 2)

    return off_one(writer, aten.acos.default, operand, at_end)


def off_one(writer: GraphWriter, function: OpOverload, operand: Any, at_end: Callable[[Any], Any]) -> Any:
    """Write a function from [-1, 1] whose slope is infinite at both ends, where it is `at_end` of its operand."""
    if is_fixed(operand) or is_off_edge(operand):
        return writer.call(function, operand)
    edge = writer.call(aten.eq.Scalar, writer.call(aten.abs.default, operand), 1)
    inside = writer.call(function, writer.call(aten.where.ScalarSelf, edge, 0.0, operand))
    return writer.call(aten.where.self, edge, at_end(writer.call(aten.detach.default, operand)), inside)


def area_cosine(writer: GraphWriter, operand: Any) -> Any:
    """Write acosh, which is 0 at 1, where its slope is infinite."""
    if is_fixed(operand) or is_off_edge(operand):
        return writer.call(aten.acosh.default, operand)
    edge = writer.call(aten.eq.Scalar, operand, 1)
    inside = writer.call(aten.acosh.default, writer.call(aten.where.ScalarSelf, edge, 2.0, operand))
    return writer.call(aten.where.ScalarSelf, edge, 0.0, inside)


def is_fixed(operand: Any) -> bool:
    return not isinstance(operand, fx.Node)


def is_off_edge(operand: fx.Node) -> bool:
    """Tell whether an operand is written so already that it is never at the edge."""
    if operand.target is not aten.where.ScalarSelf or not isinstance(condition := operand.args[0], fx.Node):
        return False
    (compared, *_), inside = condition.args, operand.args[2]
    of_size = isinstance(compared, fx.Node) and compared.target is aten.abs.default and compared.args[0] is inside
    return condition.target is aten.eq.Scalar and (compared is inside or of_size)


def is_above_zero(tensors: Mapping[str, Any], operand: Any) -> bool:
    """Tell whether an operand is kept off zero: by a positive number that is added, or that is its lower limit."""
    while isinstance(operand, fx.Node) and operand.target in KEEPING_SIGN:
        operand = operand.args[0]
    if not isinstance(operand, fx.Node) or operand.target not in (*SUMS, *LOWER_LIMITS):
        return False
    limits = operand.args[:2] if operand.target in SUMS else operand.args[1:2]
    return any(is_positive(tensors, limit) for limit in limits)


def is_positive(tensors: Mapping[str, Any], value: Any) -> bool:
    """Tell whether an operand is a number, or a tensor of fixed numbers, that are all positive."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        value = tensors[str(value.target)]
    return bool((value > 0).all()) if isinstance(value, Tensor) else isinstance(value, int | float) and value > 0


EDGES: Mapping[OpOverload, Callable[..., Any]] = {
    aten.sqrt.default: square_root,
    aten.pow.Tensor_Scalar: power,
    aten.asin.default: arc_sine,
    aten.acos.default: arc_cosine,
    aten.acosh.default: area_cosine,
}
