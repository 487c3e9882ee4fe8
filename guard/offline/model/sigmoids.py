"""Recognises a probability of one class in a graph, however its sigmoid is written, and returns its log-odds.

How it works: what stands over a sigmoid is peeled off as a scale and a shift (1 - p is -1 · p + 1), and so is what
stands in it. p = 1 / (1 + exp(w)) has the log-odds -w, p = tanh(w) / 2 + 1/2 has 2w, and p has those of 1 - p, negated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from guard.offline.model.output_rows import PICKS, bare, number, one_number, over_classes, row_sizes, same
from guard.offline.model.softmaxes import EXP, softmax_logits

aten = torch.ops.aten

SIGMOID = {aten.sigmoid.default, aten.sigmoid_.default}
TANH = {aten.tanh.default, aten.tanh_.default}
PROBABILITY_FACTORS = ((1.0, 0.0), (-1.0, 1.0))  # scale and shift of p, and of 1 - p


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
    return softmax_column(module, base, sign)


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


def softmax_column(module: fx.GraphModule, base: fx.Node, sign: float) -> Odds | None:
    """Return the log-odds where a node is one column of a softmax over two classes."""
    if (
        base.target not in PICKS
        or not isinstance(base.args[0], fx.Node)
        or not over_classes(base.args[0], base.args[1])
    ):
        return None
    source: Any = bare(base.args[0])
    if (row_sizes(source) or [])[1:] != [2] or (base.target is aten.slice.Tensor and not one_number(base)):
        return None
    logits = softmax_logits(module, source)
    if logits is None:
        return None
    column = int(str((*base.args, 0)[2] or 0)) % 2
    return Odds(logits, sign if column == 1 else -sign, two_classes=True)
