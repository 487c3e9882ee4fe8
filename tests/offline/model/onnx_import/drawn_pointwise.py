"""Strategies for graphs of one pointwise or reducing operator; a comparison is cast to a number behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto

from tests.offline.model.onnx_import.drawn_graphs import Drawn, Writer

Drawing = Callable[[Any], Drawn]  # what hypothesis' `composite` makes a strategy of

PLAIN = (
    *("Abs", "Ceil", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Log", "Mish", "Neg", "Reciprocal", "Relu"),
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan"),
    *("Round", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh"),
)
SCALED = {  # operator -> its attributes, of which each is given or left out
    "Elu": ("alpha",),
    "Celu": ("alpha",),
    "Selu": ("alpha", "gamma"),
    "Shrink": ("lambd", "bias"),
    "LeakyRelu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Swish": ("alpha",),
}
NEW = {"Swish": (24,), "Mish": (18, 20), "HardSwish": (14, 20), "Celu": (12, 20), "Gelu": (20,)}  # operator sets
ARITHMETIC = ("Add", "Sub", "Mul", "Div")
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
FOLDED = ("Max", "Mean", "Min", "Sum")
BY_INPUT = {"ReduceSum": 13}  # the operator set from which axes are an operand; 18 for the others
REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "ReduceSumSquare",
)


def begin(draw: Any, kind: str, **settings: Any) -> Writer:
    return Writer.begin(draw, opsets=NEW.get(kind, (13, 17, 18, 20)), **settings)


def plain(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = begin(draw, kind)
        writer.positive = kind in ("Log", "Sqrt", "Reciprocal")
        return writer.end(writer.add(kind, ["input"]))

    return drawn


def scaled(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = begin(draw, kind)
        given = {name: writer.real(0.125, 2) for name in SCALED[kind] if writer.flag()}
        if kind == "HardSigmoid" and writer.flag():
            given["alpha"] = 1 / 6
        return writer.end(writer.add(kind, ["input"], **given))

    return drawn


def gelu(draw: Any) -> Drawn:
    writer = begin(draw, "Gelu")
    return writer.end(writer.add("Gelu", ["input"], approximate=writer.one_of(None, "none", "tanh")))


def other_operand(writer: Writer, *, positive: bool = False) -> str:
    """A constant that broadcasts, or what another node makes of the input."""
    if writer.flag():
        return writer.broadcastable(positive=positive)
    return writer.add("Exp" if positive else "Neg", ["input"])


def in_some_order(writer: Writer, other: str) -> list[str]:
    return ["input", other] if writer.flag() else [other, "input"]


def arithmetic(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = begin(draw, kind)
        if writer.flag():
            writer.positive = kind == "Div"
            other = other_operand(writer, positive=kind == "Div")
            return writer.end(writer.add(kind, in_some_order(writer, other)))
        left = writer.add("Cast", ["input"], to=TensorProto.INT32)
        right = writer.constant(np.int32(writer.one_of(-3, -2, 1, 2, 3)))
        return writer.end(writer.as_number(writer.add(kind, [left, right])))

    return drawn


def comparison(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = Writer.begin(draw, opsets=(16, 20))
        other = writer.constant(np.float32(writer.one_of(0, 0.5, -1))) if writer.flag() else other_operand(writer)
        return writer.end(writer.as_number(writer.add(kind, in_some_order(writer, other))))

    return drawn


def both(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = begin(draw, kind)
        conditions = [writer.add(writer.one_of("Greater", "Less"), ["input", writer.broadcastable()]) for _ in "ab"]
        return writer.end(writer.as_number(writer.add(kind, conditions)))

    return drawn


def oddity(kind: str) -> Drawing:
    """Numbers whose logarithm is infinite or none."""

    def drawn(draw: Any) -> Drawn:
        writer = begin(draw, kind)
        condition = writer.add(kind, [writer.add("Log", [writer.add("Relu", ["input"])])])
        return writer.end(writer.as_number(condition))

    return drawn


def negation(draw: Any) -> Drawn:
    writer = begin(draw, "Not")
    condition = writer.add("Greater", ["input", writer.broadcastable()])
    return writer.end(writer.as_number(writer.add("Not", [condition])))


def where(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(16, 20))
    condition = writer.add("Greater", ["input", writer.broadcastable()])
    return writer.end(writer.add("Where", [condition, *in_some_order(writer, other_operand(writer))]))


def folded(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = begin(draw, kind)
        operands = ["input", *(other_operand(writer) for _ in range(writer.integer(0, 2)))]
        return writer.end(writer.add(kind, draw(st.permutations(operands))))

    return drawn


def cast(draw: Any) -> Drawn:
    writer = begin(draw, "Cast")
    kind = writer.one_of(1, 2, 3, 5, 6, 7, 9, 10, 11)
    writer.positive = kind == TensorProto.UINT8  # of a negative number it is not defined
    between = writer.add("Cast", ["input"], to=kind)
    return writer.end(writer.as_number(between))


def clip(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(7, 11, 13))
    low, high = writer.one_of((0.0, 6.0), (-0.5, 0.5), (0.5, -0.5), (0.0, 0.0))
    low, high = (bound if writer.flag() else None for bound in (low, high))
    if writer.opset < 11:
        return writer.end(writer.add("Clip", ["input"], min=low, max=high))
    bounds = [None if bound is None else writer.constant(np.float32(bound)) for bound in (low, high)]
    return writer.end(writer.add("Clip", ["input", *bounds]))


def dropout(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(10, 12, 13))
    if writer.opset < 12:
        return writer.end(writer.add("Dropout", ["input"], ratio=0.5))
    training = writer.constant(np.asarray(False)) if writer.flag() else None
    return writer.end(writer.add("Dropout", ["input", writer.constant(np.float32(0.5)), training]))


def prelu(draw: Any) -> Drawn:
    writer = begin(draw, "PRelu")
    return writer.end(writer.add("PRelu", ["input", writer.broadcastable()]))


def power(draw: Any) -> Drawn:
    writer = begin(draw, "Pow")
    exponent = writer.one_of(-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0)
    writer.positive = exponent != int(exponent) or exponent < 0
    shape = writer.one_of((), (1,), (1, 1))
    return writer.end(writer.add("Pow", ["input", writer.constant(np.full(shape, exponent, np.float32))]))


def reduction(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = Writer.begin(draw, opsets=(11, 13, 17, 18, 20))
        axes = writer.one_of(None, *[writer.axes(first=writer.one_of(0, 1, 1, 1))] * 4)
        keep = writer.one_of(None, 0, 1)
        if writer.opset < BY_INPUT.get(kind, 18):
            return writer.end(writer.add(kind, ["input"], axes=axes, keepdims=keep))
        given = None if axes is None else writer.whole(*axes)
        empty = writer.one_of(None, 0, 1)
        return writer.end(writer.add(kind, ["input", given], keepdims=keep, noop_with_empty_axes=empty))

    return drawn


def cast_like(draw: Any) -> Drawn:
    """Cast to the type of a constant, or of what another node makes."""
    writer = Writer.begin(draw, opsets=(15, 19))
    like = writer.constant(np.asarray(1, writer.one_of(np.float32, np.int32, np.float64)))
    like = like if writer.flag() else writer.add("Mul", [like, like])
    return writer.end(writer.as_number(writer.add("CastLike", ["input", like])))


def remainder(draw: Any) -> Drawn:
    """What a division leaves of real numbers, or of whole ones."""
    writer = Writer.begin(draw, opsets=(10, 13))
    if writer.flag():
        return writer.end(writer.add("Mod", ["input", writer.broadcastable(positive=True)], fmod=1))
    left = writer.add("Cast", ["input"], to=TensorProto.INT32)
    right = writer.constant(np.int32(writer.one_of(-3, -2, 1, 2, 3)))
    return writer.end(writer.as_number(writer.add("Mod", [left, right], fmod=writer.one_of(None, 0, 1))))


def best_place(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = Writer.begin(draw, opsets=(11, 12, 13))
        last = writer.one_of(None, 0, 1) if writer.opset >= 12 else None
        settings = {"axis": writer.one_of(None, writer.axis(), writer.axis()), "keepdims": writer.one_of(None, 0, 1)}
        return writer.end(writer.add(kind, ["input"], select_last_index=last, **settings), TensorProto.INT64)

    return drawn


def running_sum(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(11, 14, 20))
    axis = writer.constant(np.asarray(writer.axis(), np.int64))
    settings = {name: writer.one_of(None, 0, 1) for name in ("exclusive", "reverse")}
    return writer.end(writer.add("CumSum", ["input", axis], **settings))


def triangle(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(14, 20))
    shift = writer.constant(np.asarray(writer.integer(-2, 2), np.int64)) if writer.flag() else None
    return writer.end(writer.add("Trilu", ["input", shift], upper=writer.one_of(None, 0, 1)))


def softmax(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = Writer.begin(draw, opsets=(9, 11, 13))
        return writer.end(writer.add(kind, ["input"], axis=writer.one_of(None, writer.axis())))

    return drawn


DRAWINGS: dict[str, Drawing] = {
    **{kind: plain(kind) for kind in PLAIN},
    **{kind: scaled(kind) for kind in SCALED},
    **{kind: arithmetic(kind) for kind in ARITHMETIC},
    **{kind: comparison(kind) for kind in COMPARISONS},
    **{kind: both(kind) for kind in ("And", "Or", "Xor")},
    **{kind: oddity(kind) for kind in ("IsInf", "IsNaN")},
    **{kind: folded(kind) for kind in FOLDED},
    **{kind: reduction(kind) for kind in REDUCTIONS},
    **{kind: softmax(kind) for kind in ("Softmax", "LogSoftmax")},
    **{kind: best_place(kind) for kind in ("ArgMax", "ArgMin")},
    "Cast": cast,
    "CastLike": cast_like,
    "Mod": remainder,
    "Clip": clip,
    "CumSum": running_sum,
    "Dropout": dropout,
    "Gelu": gelu,
    "Not": negation,
    "PRelu": prelu,
    "Pow": power,
    "Trilu": triangle,
    "Where": where,
}
