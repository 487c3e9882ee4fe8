"""ONNX operators that work on each number by itself, written in torch calls that have an adjoint."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guard.offline.model.onnx_import.graph_node import Node

Operator = Callable[..., Any]
MAX_POWER_VALUES = 8
TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}


def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda _node, x: function(x)


def binary(function: Callable[[Any, Any], Any]) -> Operator:
    return lambda _node, left, right: function(left, right)


def folded(function: Callable[[Any, Any], Any]) -> Operator:
    """Make an operator of any number of operands from a function of two."""
    return lambda _node, *operands: functools.reduce(function, operands)


def number(value: Any) -> float | None:
    """Return a limit or exponent as a number; None where it was left out."""
    return None if value is None else float(value.item() if hasattr(value, "item") else value)


def clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Clamp, or where the limits are 0 and 6 compute ReLU6, whose gradient at both ends is 0 (a clamp's is 1)."""
    bottom = number(node.get("min") if low is None else low)
    top = number(node.get("max") if high is None else high)
    if (bottom, top) == (0.0, 6.0):
        return functional.relu6(x)
    if bottom is None and top is None:
        return x
    return torch.clamp(x, bottom, top)


def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    slope, offset = node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(slope - 1 / 6) < 1e-6 and offset == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(x * slope + offset, 0.0, 1.0)


def celu(node: Node, x: Tensor) -> Tensor:
    width = node.get("alpha", 1.0)
    scaled: Tensor = functional.elu(x / width) * width
    return scaled


def selu(node: Node, x: Tensor) -> Tensor:
    scale = node.get("gamma", 1.0507009873554804934193349852946)
    scaled: Tensor = functional.elu(x, node.get("alpha", 1.6732632423543772848170429916717)) * scale
    return scaled


def thresholded(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


def leaky(_node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """Compute PRelu, a leaky ReLU with a slope of its own for each channel."""
    return functional.relu(x) - slope * functional.relu(-x)


def swish(node: Node, x: Tensor) -> Tensor:
    slope = node.get("alpha", 1.0)
    return functional.silu(x) if slope == 1.0 else x * torch.sigmoid(slope * x)


def power(node: Node, x: Tensor, exponent: Any) -> Tensor:
    """Raise to a fixed power, or to a few: each number to its own, and the others stay 1 there."""
    if exponent.size == 1:
        return torch.pow(x, float(exponent.item()))
    powers = np.unique(exponent)
    if powers.size > MAX_POWER_VALUES:
        raise node.refuse(f"raises to {powers.size} different powers; at most {MAX_POWER_VALUES} are written out")
    one = torch.ones_like(x)
    raised = [torch.pow(torch.where(torch.from_numpy(exponent == p), x, one), float(p)) for p in powers]
    return functools.reduce(torch.mul, raised)


def power_of_fixed(node: Node, base: Any, exponent: Tensor) -> Tensor:
    """Raise positive constants to a power that is computed: exp(exponent * log(base))."""
    if not (base > 0).all():
        raise node.refuse(
            "raises a constant that is not positive to a power of the input", "write it with a positive base"
        )
    return torch.exp(exponent * torch.from_numpy(np.asarray(np.log(base), np.float32)))


def divide(_node: Node, left: Any, right: Any) -> Any:
    """Divide two operands; whole numbers are divided as whole numbers."""
    if isinstance(left, Tensor) and not left.is_floating_point():
        return torch.div(left, right, rounding_mode="trunc")
    return left / right


def largest(left: Any, right: Any) -> Any:
    return torch.where(left > right, left, right)


def smallest(left: Any, right: Any) -> Any:
    return torch.where(left < right, left, right)


def cast(node: Node, x: Tensor) -> Tensor:
    kind = TYPES.get(node.get("to"))
    if kind is None:
        raise node.refuse(f"casts to type {node.get('to')}")
    return x if x.dtype == kind else x.to(kind)


def cast_like(_node: Node, x: Any, like: Any) -> Tensor:
    """Cast to the type of another tensor, of which no number is read."""
    if not isinstance(x, Tensor):
        return torch.tensor(x, dtype=like.dtype)
    return x if x.dtype == like.dtype else x.to(like.dtype)


def average(_node: Node, *operands: Tensor) -> Tensor:
    total: Tensor = functools.reduce(lambda a, b: a + b, operands)
    return total if len(operands) == 1 else total / len(operands)


def remainder(node: Node, left: Any, right: Any) -> Any:
    """Divide and keep the remainder, whose sign is the divisor's, or with `fmod` the dividend's."""
    return torch.fmod(left, right) if node.get("fmod", 0) else torch.remainder(left, right)


def shrink(node: Node, x: Tensor) -> Tensor:
    """Move what is beyond a limit on either side towards 0, and the rest to 0."""
    limit, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    zeros = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zeros))


def infinite(node: Node, x: Tensor) -> Tensor:
    """Tell which numbers are infinite, or only those of the signs that the node names."""
    largest_finite = torch.finfo(x.dtype).max
    above, below = x > largest_finite, x < -largest_finite
    if not node.get("detect_negative", 1):
        return above if node.get("detect_positive", 1) else torch.zeros_like(above)
    return torch.logical_or(above, below) if node.get("detect_positive", 1) else below


def dropout(node: Node, x: Tensor, share: Any = None, training: Any = None) -> Tensor:
    """Write a dropout that does nothing, so that what the model learned with is known."""
    if training is not None and bool(training):
        raise node.refuse("still drops out; export the model in evaluation mode")
    return torch.nn.functional.dropout(x, float(node.get("ratio", 0.5) if share is None else share), training=False)


def choose(_node: Node, condition: Tensor, left: Any, right: Any) -> Tensor:
    return torch.where(condition, left, right)


POINTWISE: dict[str, Operator] = {
    "Abs": unary(torch.abs),
    "Acos": unary(torch.acos),
    "Acosh": unary(torch.acosh),
    "Asin": unary(torch.asin),
    "Asinh": unary(torch.asinh),
    "Atan": unary(torch.atan),
    "Atanh": unary(torch.atanh),
    "Ceil": unary(torch.ceil),
    "Cos": unary(torch.cos),
    "Cosh": unary(torch.cosh),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Floor": unary(torch.floor),
    "HardSwish": unary(functional.hardswish),
    "Log": unary(torch.log),
    "Mish": unary(lambda x: x * torch.tanh(functional.softplus(x))),
    "Neg": unary(torch.neg),
    "Not": unary(torch.logical_not),
    "Reciprocal": unary(lambda x: torch.pow(x, -1.0)),
    "Relu": unary(functional.relu),
    "Round": unary(torch.round),
    "Sigmoid": unary(torch.sigmoid),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Sinh": unary(torch.sinh),
    "Softplus": unary(functional.softplus),
    "Softsign": unary(lambda x: x / (1.0 + torch.abs(x))),
    "Sqrt": unary(torch.sqrt),
    "Tan": unary(torch.tan),
    "Tanh": unary(torch.tanh),
    "Elu": lambda node, x: functional.elu(x, node.get("alpha", 1.0)),
    "Gelu": lambda node, x: functional.gelu(x, approximate=node.get("approximate", "none")),
    "LeakyRelu": lambda node, x: functional.leaky_relu(x, node.get("alpha", 0.01)),
    "Add": binary(lambda a, b: a + b),
    "Sub": binary(lambda a, b: a - b),
    "Mul": binary(lambda a, b: a * b),
    "And": binary(torch.logical_and),
    "Or": binary(torch.logical_or),
    "Equal": binary(lambda a, b: a == b),
    "Greater": binary(lambda a, b: a > b),
    "GreaterOrEqual": binary(lambda a, b: a >= b),
    "Less": binary(lambda a, b: a < b),
    "LessOrEqual": binary(lambda a, b: a <= b),
    "Xor": binary(torch.logical_xor),
    "IsInf": infinite,
    "IsNaN": unary(torch.isnan),
    "Max": folded(largest),
    "Min": folded(smallest),
    "Sum": folded(lambda a, b: a + b),
    "Cast": cast,
    "CastLike": cast_like,
    "Celu": celu,
    "Clip": clip,
    "Div": divide,
    "Dropout": dropout,
    "HardSigmoid": hard_sigmoid,
    "Mean": average,
    "Mod": remainder,
    "Shrink": shrink,
    "Identity": unary(lambda x: x),
    "Pow": power,
    "PRelu": leaky,
    "Selu": selu,
    "Swish": swish,
    "ThresholdedRelu": thresholded,
    "Where": choose,
}
