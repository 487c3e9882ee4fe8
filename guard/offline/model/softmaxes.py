"""Recognises a softmax over classes in a graph, however it is written, and returns its logits.

How it works. A softmax may be one operator, exp(z) over the sum of exp(z), exp of a log-softmax, or
exp(z - logsumexp(z)). What is added to each class of an item alike changes none of these, so it is taken off the
logits: in z - max(z) the largest is always 0, and has no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from guard.errors import ModelError
from guard.offline.model.graph.shapes import shape_of
from guard.offline.model.output_rows import bare, class_axis, number, one_number, over_classes, same

aten = torch.ops.aten

SOFTMAX = {aten.softmax.int, aten._softmax.default}
LOG_SOFTMAX = {aten.log_softmax.int, aten._log_softmax.default}
EXP = {aten.exp.default, aten.exp_.default}
FLOORS = ("clamp", "clamp_min", "maximum", "add", "expand", "expand_as")  # that hold a sum from 0, or repeat it
MAX_FLOOR_SHARE = 1e-6  # below which a sum of probabilities may be held, or raised, without changing what it divides


def name_of(node: Any) -> str:
    """Return an operator's name, without the mark of one that works in place."""
    return str(getattr(getattr(node, "target", None), "_opname", "")).rstrip("_")


def softmax_logits(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the logits of which a node is the softmax over classes; None where it is none.

    Raises:
        ModelError: it is a softmax over another axis than that of the classes.
    """
    if node.target in SOFTMAX:
        axis, shape = node.args[1], shape_of(node)
        if not over_classes(node, axis):
            raise ModelError(
                f"the model ends in a softmax over axis {axis} of {shape}; wanted [item, class] with the classes' "
                "probabilities summing to 1: one softmax, over axis 1"
            )
        return bare(node.args[0])  # type: ignore[no-any-return]
    if node.target in EXP:
        return logarithm(module, bare(node.args[0]))
    inner = normalised(module, node)
    if inner is None:
        return None
    return unshifted(module, inner.args[0]) if inner.target in EXP else softmax_logits(module, inner)


def logarithm(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the logits of which a node is the logarithm of the softmax over classes; None where it is none."""
    if node.target in LOG_SOFTMAX and over_classes(node, node.args[1]):
        return bare(node.args[0])  # type: ignore[no-any-return]
    if name_of(node) != "sub" or len(node.args) != 2:
        return None
    logits, total = (bare(part) for part in node.args)
    summed = within_logsumexp(total)
    return unshifted(module, logits) if summed is not None and same(summed, logits) else None


def within_logsumexp(node: Any) -> fx.Node | None:
    """Return z where a node is the logarithm of the sum of exp(z), or that of exp(z - s), plus s; else None."""
    if name_of(node) == "logsumexp" and over_classes(node.args[0], node.args[1]):
        return bare(node.args[0])  # type: ignore[no-any-return]
    if name_of(node) == "log":
        summed = total_of(bare(node.args[0]))
        return None if summed is None or summed.target not in EXP else bare(summed.args[0])
    if name_of(node) != "add" or len(node.args) != 2:
        return None
    for part, shift in (node.args, node.args[::-1]):
        inner = within_logsumexp(bare(part))
        if name_of(inner) == "sub" and bare(inner.args[1]) is bare(shift):  # type: ignore[union-attr]
            return bare(inner.args[0])  # type: ignore[union-attr, no-any-return]
    return None


def unshifted(module: fx.GraphModule, node: Any) -> fx.Node:
    """Return logits without what is added to, or taken from, all classes of an item alike."""
    node = bare(node)
    while name_of(node) in ("add", "sub") and len(node.args) == 2 and class_axis(node) is not None:
        kept, other = node.args
        if name_of(node) == "add" and is_shift(module, kept, node):
            kept, other = other, kept
        if not is_shift(module, other, node) or not isinstance(kept, fx.Node) or class_axis(kept) is None:
            break
        node = bare(kept)
    return node  # type: ignore[no-any-return]


def is_shift(module: fx.GraphModule, operand: Any, total: fx.Node) -> bool:
    """Tell whether an operand of a sum is one number for all classes of an item."""
    if not isinstance(operand, fx.Node) or number(module, operand) is not None:
        return True
    sizes = shape_of(operand)
    return operand.op == "call_function" and one_number(operand) and len(sizes) == len(shape_of(total))


def normalised(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return x where a node is x over the sum of its columns, as scikit-learn's one-against-all classifiers end."""
    above, below = quotient(module, node)
    below = unfloored(module, below)
    if above is None or below is None:
        return None
    summed = total_of(below)
    return above if summed is not None and same(summed, above) else None


def quotient(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """Return numerator and denominator of a quotient, also where it is a product with a reciprocal."""
    if name_of(node) not in ("div", "mul") or len(node.args) != 2:
        return None, None
    parts = [bare(part) for part in node.args]
    if not all(isinstance(part, fx.Node) for part in parts):
        return None, None
    if name_of(node) == "div":
        return parts[0], parts[1]
    for above, factor in (parts, parts[::-1]):
        below = unscaled(module, factor)
        inverse = name_of(below) == "reciprocal" or (name_of(below) == "pow" and below.args[1] == -1)
        if inverse:
            return above, bare(below.args[0])
        if name_of(below) == "div" and number(module, below.args[0]) == 1:
            return above, bare(below.args[1])
    return None, None


def unscaled(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return a node without a factor of 1, as torch writes 1.0 / x."""
    while name_of(node) == "mul" and number(module, node.args[1]) == 1:
        node = bare(node.args[0])
    return node


def unfloored(module: fx.GraphModule, node: fx.Node | None) -> fx.Node | None:
    """Return a sum without the small number that keeps it from 0; None where that number is not small."""
    while isinstance(node, fx.Node) and name_of(node) in FLOORS:
        floor = number(module, node.args[1]) if not name_of(node).startswith("expand") else 0.0
        if floor is None or floor > MAX_FLOOR_SHARE or len(node.args) > 2 or node.kwargs:
            return None
        node = bare(node.args[0])
    return node


def total_of(node: fx.Node) -> fx.Node | None:
    """Return what a node sums up over classes, by absolute size or as it is; None where it is no such sum."""
    if node.target is aten.linalg_vector_norm.default and node.args[1] == 1:
        axes = node.args[2]
    elif node.target is aten.sum.dim_IntList:
        axes = node.args[1]
    else:
        return None
    if not over_classes(node.args[0], axes):  # type: ignore[arg-type]
        return None
    summed = bare(node.args[0])
    return bare(summed.args[0]) if summed.target is aten.abs.default else summed  # type: ignore[no-any-return]
