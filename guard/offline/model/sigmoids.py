"""Recognises a probability of one class in a graph, however its sigmoid is written, and returns its log-odds.

How it works: what stands over a sigmoid is peeled off as a scale and a shift (1 - p is -1 · p + 1), and so is what
stands in it. p = 1 / (1 + exp(w)) has the log-odds -w, p = tanh(w) / 2 + 1/2 has 2w, and p has those of 1 - p, negated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

SIGMOID = {aten.sigmoid.default, aten.sigmoid_.default}
SOFTMAX = {aten.softmax.int, aten._softmax.default}
TANH = {aten.tanh.default, aten.tanh_.default}
EXP = {aten.exp.default, aten.exp_.default}
CASTS = {aten._to_copy.default, aten.to.dtype}
COPIES = {
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.dropout.default,
    aten.lift_fresh_copy.default,
}
RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.select.int,  # of one number there is but one to select
    aten.slice.Tensor,
}
PROBABILITY_FACTORS = ((1.0, 0.0), (-1.0, 1.0))  # scale and shift of p, and of 1 - p
MAX_AXIS_VALUES = 2**31  # no axis is as long: a slice that ends there ends nowhere


@dataclass(frozen=True)
class Odds:
    """Log-odds of a probability: `scale` times a node, whose two classes' difference counts where it has two."""

    node: fx.Node
    scale: float
    two_classes: bool = False  # logits [item, 2] of a softmax, of which one column was taken


@dataclass(frozen=True)
class Affine:
    """A node as `scale` times another one plus `shift`."""

    node: fx.Node
    scale: float
    shift: float

    def times(self, factor: float) -> Affine:
        return Affine(self.node, self.scale * factor, self.shift * factor)

    def plus(self, term: float) -> Affine:
        return Affine(self.node, self.scale, self.shift + term)


def shape_of(node: fx.Node) -> list[int]:
    """Return a node's shape as the export recorded it; an open axis is -1."""
    value = node.meta.get("val")
    return [int(size) if isinstance(size, int) else -1 for size in getattr(value, "shape", ())]


def one_number(node: fx.Node) -> bool:
    """Tell whether a node holds one number an item: [item], [item, 1] or with more axes of one."""
    shape = shape_of(node)
    return len(shape) > 0 and all(size == 1 for size in shape[1:])


def bare(node: Any) -> Any:
    """Return what is below copies and casts between floats, and below a reshape of one number an item."""
    while isinstance(node, fx.Node) and node.args and isinstance(node.args[0], fx.Node):
        below = node.args[0]
        cast = node.target in CASTS and getattr(node.meta.get("val"), "is_floating_point", bool)()
        reshape = node.target in RESHAPES and one_number(below) and one_number(node)
        if not (cast or reshape or node.target in COPIES or takes_all(node)):
            break
        node = below
    return node


def takes_all(node: fx.Node) -> bool:
    """Tell whether a slice leaves nothing out, as `x[:, 0]` slices the items first."""
    if node.target is not aten.slice.Tensor:
        return False
    start, end = ([*node.args[2:], None, None])[:2]
    return (
        start in (0, None) and (end is None or (isinstance(end, int) and end > MAX_AXIS_VALUES)) and len(node.args) < 5
    )


def same(one: Any, other: Any) -> bool:
    """Tell whether two nodes compute the same from the same operands, one operator deep or the node itself."""
    one, other = bare(one), bare(other)
    if one is other or not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        return one is other
    operands = zip(one.args, other.args, strict=False)
    alike = one.target == other.target and len(one.args) == len(other.args) and one.op == "call_function"
    return alike and one.kwargs == other.kwargs and all(bare(a) == bare(b) for a, b in operands)


def number(module: fx.GraphModule, operand: Any) -> float | None:
    """Return an operand's value where it is one fixed number."""
    operand = bare(operand)
    if isinstance(operand, int | float):
        return float(operand)
    if not isinstance(operand, fx.Node) or operand.op != "get_attr":
        return None
    value: Any = module
    for part in str(operand.target).split("."):
        value = getattr(value, part)
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else None


def affine(module: fx.GraphModule, node: fx.Node) -> Affine:
    """Return a node as scale and shift of the first one below that is neither scaled nor shifted."""
    node = bare(node)
    name, operands = getattr(node.target, "_opname", "").rstrip("_"), node.args
    if name == "neg":
        return affine(module, operands[0]).times(-1)  # type: ignore[arg-type]
    if name not in ("add", "sub", "rsub", "mul", "div") or len(operands) != 2 or node.kwargs:
        return Affine(node, 1.0, 0.0)
    one, other = operands if name != "rsub" else operands[::-1]
    left, right = number(module, one), number(module, other)
    if right is not None and isinstance(one, fx.Node):
        inner = affine(module, one)
        match name:
            case "add":
                return inner.plus(right)
            case "mul":
                return inner.times(right)
            case "div":
                return inner.times(1 / right) if right else Affine(node, 1.0, 0.0)
            case _:
                return inner.plus(-right)
    if left is not None and isinstance(other, fx.Node) and name != "div":
        inner = affine(module, other)
        return inner.times(left) if name == "mul" else inner.times(1 if name == "add" else -1).plus(left)
    return Affine(node, 1.0, 0.0)


def past_probability(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the operator by which a probability is changed further, one number an item; None where there is none."""
    while one_number(node) and node.args and isinstance(node.args[0], fx.Node):
        below = bare(node.args[0])
        if one_number(below) and log_odds(module, below) is not None:
            return node
        node = below
    return None


def log_odds(module: fx.GraphModule, node: fx.Node) -> Odds | None:
    """Return the log-odds of a probability; None where the node is not recognised as one."""
    outer = affine(module, node)
    direct = (outer.scale, outer.shift)
    base, sign = outer.node, 1.0 if outer.scale > 0 else -1.0
    if base.target in TANH:
        return scaled(base.args[0], 2 * sign) if direct in ((0.5, 0.5), (-0.5, 0.5)) else None
    ratio = fraction(module, base)
    if ratio is not None:
        power, direction, numerator = ratio
        outer = Affine(base, outer.scale * numerator, outer.shift)
        sign, direct = 1.0 if outer.scale > 0 else -1.0, (outer.scale, outer.shift)
        return scaled(power, sign * direction) if direct in PROBABILITY_FACTORS else None
    if direct not in PROBABILITY_FACTORS:
        return None
    if base.target in SIGMOID:
        return scaled(base.args[0], sign)
    if base.target in EXP and getattr(bare(base.args[0]).target, "_opname", "") == "log_sigmoid":
        return scaled(bare(base.args[0]).args[0], sign)
    return softmax_column(base, sign)


def scaled(node: Any, scale: float) -> Odds:
    return Odds(bare(node), scale)


def fraction(module: fx.GraphModule, base: fx.Node) -> tuple[fx.Node, float, float] | None:
    """Return (w, sign, c) where a node is c / (1 + exp(w)), of sign -1, or exp(w) / (1 + exp(w)), of sign 1."""
    name = getattr(base.target, "_opname", "").rstrip("_")
    inverse = name == "reciprocal" or (name == "pow" and base.args[1] == -1)  # which is how an ONNX file's is read
    if not inverse and (name != "div" or len(base.args) != 2 or not isinstance(base.args[1], fx.Node)):
        return None
    below = affine(module, base.args[0 if inverse else 1])  # type: ignore[arg-type]
    if below.node.target not in EXP or (below.scale, below.shift) != (1.0, 1.0):
        return None
    power: Any = bare(below.node.args[0])
    numerator = 1.0 if inverse else number(module, base.args[0])
    if numerator is not None:
        return power, -1.0, numerator
    above = bare(base.args[0])
    alike = isinstance(above, fx.Node) and above.target in EXP and same(above.args[0], power)
    return (power, 1.0, 1.0) if alike else None


def softmax_column(base: fx.Node, sign: float) -> Odds | None:
    """Return the log-odds where a node is one column of a softmax over two classes."""
    source: Any = bare(base.args[0]) if base.args else None
    if not isinstance(source, fx.Node) or source.target not in SOFTMAX or shape_of(source)[1:] != [2]:
        return None
    if base.target is aten.select.int and base.args[1] in (1, -1):
        column = int(str(base.args[2])) % 2
    elif base.target is aten.slice.Tensor and base.args[1] in (1, -1) and one_number(base):
        column = int(str(base.args[2] or 0)) % 2
    else:
        return None
    logits: Any = source.args[0]
    return Odds(logits, sign if column == 1 else -sign, two_classes=True)
