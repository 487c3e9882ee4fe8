"""Strategies for arithmetic on sizes, and for branches that sizes decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.offline.model.onnx_import.drawn_graphs import Drawn, Writer

TWO_OPERANDS = ("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Pow")
COMPARING = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
JOINING = ("And", "Or")
ON_REALS = ("Sqrt", "Floor", "Ceil", "Neg")


def scalar_of(writer: Writer) -> str:
    """A size of an item, or a number."""
    if writer.flag():
        return writer.constant(np.asarray(writer.one_of(-3, -2, 1, 2, 3, 7)))
    sizes = writer.add("Shape", ["input"])
    return writer.add("Gather", [sizes, writer.constant(np.asarray(writer.integer(1, writer.rank - 1)))], axis=0)


def condition(writer: Writer, kind: str, value: str) -> str:
    is_so = writer.add(kind, [value, scalar_of(writer)])
    return writer.add("Not", [is_so]) if writer.flag() else is_so


def joined(writer: Writer, kind: str, value: str) -> str:
    """Two conditions on a number as one."""
    parts = [condition(writer, writer.one_of(*COMPARING), value) for _ in range(2)]
    return writer.add(kind, parts)


def branched(writer: Writer, is_so: str, kind: int, written: Callable[[Writer], str]) -> str:
    """Write an If, each of whose two branches is what a function writes into it."""
    graphs = {}
    for name in ("then_branch", "else_branch"):
        prefix = f"{writer.prefix}{len(writer.nodes)}{name[0]}."
        branch = replace(writer, nodes=[], constants={}, prefix=prefix)
        last = branch.add("Identity", [written(branch)])
        constants = [numpy_helper.from_array(value, name) for name, value in branch.constants.items()]
        output = helper.make_tensor_value_info(last, kind, None)
        graphs[name] = helper.make_graph(branch.nodes, name, [], [output], constants)
    return writer.add("If", [is_so], **graphs)


def step(writer: Writer, kind: str, value: str) -> str:
    """One step of arithmetic from a whole number to a whole number."""
    if kind in TWO_OPERANDS:
        other = scalar_of(writer) if kind != "Pow" else writer.constant(np.asarray(writer.integer(0, 3)))
        return writer.add(kind, [value, other])
    if kind in COMPARING:
        return writer.add("Where", [condition(writer, kind, value), value, scalar_of(writer)])
    if kind in JOINING:
        return writer.add("Where", [joined(writer, kind, value), value, scalar_of(writer)])
    if kind == "Abs":
        return writer.add(kind, [writer.add("Sub", [value, scalar_of(writer)])])
    if kind == "If":
        is_so = condition(writer, writer.one_of(*COMPARING), value)
        return branched(writer, is_so, TensorProto.INT64, lambda branch: step(branch, branch.one_of(*STEPS), value))
    if kind in ON_REALS:
        real = writer.as_number(value)
        real = writer.add("Mul", [real, real]) if kind == "Sqrt" else real
        half = writer.add("Mul", [real, writer.constant(np.float32(writer.one_of(0.5, 1.0, 0.25)))])
        return writer.add("Cast", [writer.add(kind, [half])], to=TensorProto.INT64)
    if kind == "Quotient":  # of two whole numbers that are written as real ones
        parts = [writer.add("Floor", [writer.as_number(part)]) for part in (value, scalar_of(writer))]
        product = writer.add("Mul", [writer.add("Div", parts), writer.constant(np.float32(8))])
        return writer.add("Cast", [product], to=TensorProto.INT64)
    return listed(writer, kind, value)


def listed(writer: Writer, kind: str, value: str) -> str:
    """A step by way of a list of whole numbers."""
    row = writer.add("Unsqueeze", [value, writer.whole(0)])
    pair = writer.add("Concat", [row, writer.whole(writer.integer(1, 3), writer.integer(1, 3))], axis=0)
    if kind == "Slice":
        begin, end, every = writer.one_of((0, 1, 1), (1, 2, 1), (-1, 9, 1), (2, -9, -2), (-3, -2, 2))
        some = writer.add(kind, [pair, *(writer.whole(number) for number in (begin, end, 0, every))])
        return writer.add("Gather", [some, writer.constant(np.asarray(0))], axis=0)
    if kind in REDUCING:
        return reduced(writer, kind, pair)
    if kind == "ScatterND":  # writes one number over another
        place = writer.constant(np.asarray([[writer.integer(0, 2)]]))
        other = writer.add(kind, [pair, place, writer.whole(writer.integer(1, 9))])
        return writer.add("Gather", [other, writer.constant(np.asarray(writer.integer(0, 2)))], axis=0)
    if kind == "Size":
        return writer.add("Mul", [value, writer.add(kind, [pair])])
    if kind == "Flatten":
        flat = writer.add(kind, [pair], axis=writer.one_of(0, 1, -1))
        return writer.add("ReduceProd", [flat], keepdims=0)
    if kind == "Tile":
        tiled = writer.add(kind, [pair, writer.whole(2)])
        return writer.add("Gather", [tiled, writer.constant(np.asarray(writer.integer(0, 5)))], axis=0)
    if kind == "Squeeze":
        return writer.add(kind, [row, writer.whole(0)] if writer.flag() else [row])
    if kind == "Reshape":
        return writer.add("Squeeze", [writer.add(kind, [value, writer.whole(1, -1)]), writer.whole(0, 1)])
    if kind == "Transpose":  # of a table [2, 3], as of the widths of a padding
        six = writer.add("Concat", [pair, pair], axis=0)
        turned = writer.add(kind, [writer.add("Reshape", [six, writer.whole(2, 3)])], perm=writer.one_of(None, [1, 0]))
        flat = writer.add("Reshape", [turned, writer.whole(-1)])
        return writer.add("Gather", [flat, writer.constant(np.asarray(writer.integer(0, 5)))], axis=0)
    if kind == "Expand":
        return writer.add("ReduceProd", [writer.add(kind, [row, writer.whole(2)])], keepdims=0)
    if kind == "ConstantOfShape":
        ones = writer.add(
            kind, [writer.add("Shape", [pair])], value=helper.make_tensor("v", TensorProto.INT64, [1], [2])
        )
        return writer.add("Mul", [value, writer.add("ReduceProd", [ones], keepdims=0)])
    if kind == "Range":
        limits = [writer.constant(np.asarray(number)) for number in (1, writer.integer(2, 9), writer.integer(1, 3))]
        return writer.add("Mul", [value, writer.add("ReduceProd", [writer.add(kind, limits)], keepdims=0)])
    return writer.add("Gather", [pair, writer.constant(np.asarray(writer.integer(-3, 2)))], axis=0)


def reduced(writer: Writer, kind: str, three: str) -> str:
    """Join three numbers, or the lines of a table [2, 3] of them."""
    if writer.flag():
        return writer.add(kind, [three], keepdims=0)
    table = writer.add("Reshape", [writer.add("Concat", [three, three], axis=0), writer.whole(2, 3)])
    along, keepdims = writer.integer(0, 1), writer.integer(0, 1)
    if kind == "ReduceSum":
        lines = writer.add(kind, [table, writer.whole(along)], keepdims=keepdims)
    else:
        lines = writer.add(kind, [table], axes=[along], keepdims=keepdims)
    flat = writer.add("Reshape", [lines, writer.whole(-1)])
    return writer.add("Gather", [flat, writer.constant(np.asarray(writer.integer(0, 1)))], axis=0)


REDUCING = ("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
LISTED = (
    "Concat",
    "Slice",
    "Size",
    *REDUCING,
    "ScatterND",
    "Flatten",
    "Tile",
    "Squeeze",
    "Reshape",
    "Transpose",
    "Expand",
    "ConstantOfShape",
    "Range",
)
STEPS = (*TWO_OPERANDS, *COMPARING, *JOINING, *ON_REALS, "Abs", "Quotient", *LISTED, "If")


@st.composite
def arithmetic_on_sizes(draw: Any, first: str) -> Drawn:
    """Sizes of the input taken through a few steps, and multiplied into the input, so that the result shows."""
    writer = Writer.begin(draw, opsets=(13, 17))
    value = scalar_of(writer)
    for kind in [first, *draw(st.lists(st.sampled_from(STEPS), max_size=2))]:
        value = step(writer, kind, value)
    return writer.end(writer.add("Mul", ["input", writer.as_number(writer.add("Identity", [value]))]))


def moved(writer: Writer) -> str:
    """Write into a branch what need not be possible where the other one runs."""
    match writer.one_of("Relu", "Squeeze", "Flatten", "Transpose", "Slice", "If"):
        case "Squeeze":
            return writer.add("Squeeze", ["input", writer.whole(1)])
        case "Flatten":
            return writer.add("Flatten", ["input"], axis=writer.integer(1, 2))
        case "Transpose":
            return writer.add("Transpose", ["input"], perm=[0, *writer.draw(st.permutations(range(1, writer.rank)))])
        case "Slice":
            return writer.add("Slice", ["input", writer.whole(1), writer.whole(3), writer.whole(1)])
        case "If":
            is_so = condition(writer, writer.one_of(*COMPARING), scalar_of(writer))
            return branched(writer, is_so, TensorProto.FLOAT, lambda branch: branch.add("Neg", ["input"]))
        case kind:
            return writer.add(kind, ["input"])


@st.composite
def branch_on_sizes(draw: Any) -> Drawn:
    """One of two branches runs, as the sizes of an item say."""
    writer = Writer.begin(draw, opsets=(13, 17, 20), size=3)
    is_so = condition(writer, writer.one_of(*COMPARING), scalar_of(writer))
    found = branched(writer, is_so, TensorProto.FLOAT, moved)
    return writer.end(writer.add(writer.one_of("Sigmoid", "Identity"), [found]))
