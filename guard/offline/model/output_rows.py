"""Rows [item] and [item, class] at a graph's end, whatever axes of one they have, and what computes nothing on them.

Example: a softmax over axis 1 of [item, 5, 1, 1] and a Flatten behind it: the Flatten drops axes of one alone, so what
is below it is the same row, and axis 1 is its class axis.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from guard.offline.model.graph.shapes import shape_of

aten = torch.ops.aten

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
    aten.select.int,  # of an axis of one there is but one to select
    aten.slice.Tensor,
    aten.expand.default,
    aten.permute.default,
    aten.transpose.int,
    aten.mean.dim,  # of an axis of one the mean is the number itself
    aten.adaptive_avg_pool2d.default,
}
PICKS = {aten.select.int, aten.slice.Tensor}
MAX_REPEATED_STEPS = 4  # of a computation that is written twice, as exp(z - max(z)) above and below
MAX_AXIS_VALUES = 2**31  # no axis is as long: a slice that ends there ends nowhere


def one_number(node: fx.Node) -> bool:
    """Tell whether a node holds one number an item: [item], [item, 1] or with more axes of one."""
    shape = shape_of(node)
    return len(shape) > 0 and all(size == 1 for size in shape[1:])


def bare(node: Any) -> Any:
    """Return what is below copies, casts between floats, and what moves, adds or drops a row's axes of one."""
    while isinstance(node, fx.Node) and node.args and isinstance(node.args[0], fx.Node):
        below = node.args[0]
        if not (is_float_cast(node) or node.target in COPIES or keeps_row(node)):
            break
        node = below
    return node


def keeps_row(node: fx.Node) -> bool:
    """Tell whether a node gives its operand's rows as they are, with other axes of one at most."""
    if takes_all(node):
        return True
    if node.target not in RESHAPES or (node.target in PICKS and node.args[1:2] in ((), (0,))):
        return False
    sizes = row_sizes(node)
    return sizes is not None and sizes == row_sizes(node.args[0])


def row_sizes(node: Any) -> list[int] | None:
    """Return a row's first size, that of its items, and those beyond one; None where a row is no single axis."""
    shape = shape_of(node)
    larger = [size for size in shape[1:] if size != 1]
    return shape[:1] + larger if shape and len(larger) <= 1 else None


def class_axis(node: fx.Node) -> int | None:
    """Return the only axis of an item that is larger than one; None where there is none, or several."""
    axes = [axis for axis, size in enumerate(shape_of(node)) if axis and size != 1]
    return axes[0] if len(axes) == 1 else None


def over_classes(node: fx.Node, axes: Any) -> bool:
    """Tell whether these axes of a node are that of its classes, beside any of one."""
    named = {int(axis) % len(shape_of(node)) for axis in (axes if isinstance(axes, list | tuple) else [axes])}
    others = {axis for axis, size in enumerate(shape_of(node)) if axis and size == 1}
    return class_axis(node) is not None and named - others == {class_axis(node)}


def as_rows(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return a node as [item, class], where it has axes of one beside these."""
    if len(shape_of(node)) <= 2 or class_axis(node) is None:
        return node
    rows = module.graph.call_function(aten.flatten.using_ints, (node, 1))
    rows.meta["val"] = node.meta["val"].flatten(1)
    return rows


def uncopied(node: Any) -> Any:
    """Return what is below copies and casts between floats alone."""
    while isinstance(node, fx.Node) and (is_float_cast(node) or node.target in COPIES):
        node = node.args[0]
    return node


def is_float_cast(node: fx.Node) -> bool:
    """Tell whether a node is a cast to a type of floats."""
    return node.target in CASTS and bool(getattr(node.meta.get("val"), "is_floating_point", bool)())


def takes_all(node: fx.Node) -> bool:
    """Tell whether a slice leaves nothing out, as `x[:, 0]` slices the items first."""
    if node.target is not aten.slice.Tensor:
        return False
    start, end = ([*node.args[2:], None, None])[:2]
    return (
        start in (0, None) and (end is None or (isinstance(end, int) and end > MAX_AXIS_VALUES)) and len(node.args) < 5
    )


def same(one: Any, other: Any, steps: int = MAX_REPEATED_STEPS) -> bool:
    """Tell whether two operands are one, or nodes that compute the same from the same, so many steps back."""
    one, other = bare(one), bare(other)
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        return bool(one == other)
    if one is other or not steps:
        return one is other
    operands = zip(one.args, other.args, strict=False)
    alike = one.target == other.target and len(one.args) == len(other.args) and one.op == "call_function"
    return alike and one.kwargs == other.kwargs and all(same(a, b, steps - 1) for a, b in operands)


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
