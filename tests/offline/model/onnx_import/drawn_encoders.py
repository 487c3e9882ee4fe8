"""Strategies for graphs of one encoder of `ai.onnx.ml`, on numbers that are made to be categories first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto, helper

from guard.offline.model.onnx_import.refusals import ML
from tests.offline.model.onnx_import.drawn_graphs import Drawn, Writer

Drawing = Callable[[Any], Drawn]
DOMAIN = ML.rstrip(".")
CATEGORY = st.integers(-2, 3)  # of numbers that are mostly between -4 and 4
NAN = float("nan")


def begin(draw: Any) -> Writer:
    return Writer.begin(draw, ranks=(1, 1, 3), opsets=(13, 17, 20))


def categories(writer: Writer, *, whole: bool) -> str:
    codes = writer.add(writer.one_of("Round", "Floor"), ["input"])
    return writer.add("Cast", [codes], to=TensorProto.INT64) if whole else codes


def binarizer(draw: Any) -> Drawn:
    """Draw thresholds that many numbers are equal to, or the one that counts where none is given."""
    writer = begin(draw)
    given = categories(writer, whole=False) if writer.flag() else "input"
    threshold = writer.one_of(None, 0.0, -1.0, 1.0, 0.3)
    return writer.end(writer.add("Binarizer", [given], domain=DOMAIN, threshold=threshold))


def imputer(draw: Any) -> Drawn:
    """Draw NaN that the graph makes, and numbers in its place; what else may be replaced is refused."""
    writer = begin(draw)
    match writer.one_of("floats", "floats", "floats", "default", "whole"):
        case "whole":
            codes = categories(writer, whole=True)
            found = writer.add("Imputer", [codes], domain=DOMAIN, imputed_value_int64s=[7], replaced_value_int64=1)
            return writer.end(writer.as_number(found))
        case kind:
            replaced = NAN if kind == "floats" else writer.one_of(None, 0.0, -1.0)
    if writer.flag():
        given = writer.add("Sqrt", ["input"])
    else:
        positive = writer.add("Greater", ["input", writer.constant(np.float32(0))])
        given = writer.add("Where", [positive, "input", writer.constant(np.float32(NAN))])
    count = writer.one_of(1, writer.shape[-1], writer.shape[-1], writer.shape[-1] + 1)
    imputed = [float(number) for number in range(7, 7 + count)]
    return writer.end(
        writer.add("Imputer", [given], domain=DOMAIN, imputed_value_floats=imputed, replaced_value_float=replaced)
    )


def one_hot_encoder(draw: Any) -> Drawn:
    """Draw categories in no order, some of them twice; numbers that are none have a row of zeros, or no answer."""
    writer = begin(draw)
    if writer.integer(0, 4) == 0:
        words = writer.add("Cast", [categories(writer, whole=True)], to=TensorProto.STRING)
        return writer.end(writer.add("OneHotEncoder", [words], domain=DOMAIN, cats_strings=["1", "0"], zeros=1))
    codes = categories(writer, whole=writer.flag()) if writer.flag() else "input"  # which the encoder cuts off
    known = draw(st.lists(CATEGORY, min_size=1, max_size=5, unique=writer.integer(0, 4) > 0))
    zeros = writer.one_of(None, 1, 1)
    if writer.integer(0, 3) == 0:  # where each number is a category
        positive = writer.add("Greater", ["input", writer.constant(np.float32(0))])
        codes, known, zeros = writer.add("Cast", [positive], to=TensorProto.INT64), [1, 0], 0
    return writer.end(writer.add("OneHotEncoder", [codes], domain=DOMAIN, cats_int64s=known, zeros=zeros))


def label_encoder(draw: Any) -> Drawn:
    """Draw tables from floats or whole numbers to either, as lists or as tensors; by way of words they are refused."""
    writer = begin(draw)
    writer.ml_opset = writer.one_of(3, 4)
    whole_keys, whole_values = writer.flag(), writer.flag()
    keys = draw(st.lists(CATEGORY, min_size=1, max_size=5, unique=writer.flag()))
    values = draw(st.lists(st.integers(-9, 9), min_size=len(keys), max_size=len(keys)))
    codes = categories(writer, whole=whole_keys)
    if writer.integer(0, 5) == 0:
        words = writer.draw(st.permutations("abcde"))[: len(keys)]
        to_words = {**column(writer, "keys", keys, whole=whole_keys), "values_strings": words}
        codes = writer.add("LabelEncoder", [codes], domain=DOMAIN, **to_words)
        from_words = {"keys_strings": words, **column(writer, "values", values, whole=whole_values)}
        found = writer.add("LabelEncoder", [codes], domain=DOMAIN, **from_words)
    else:
        table = column(writer, "keys", keys, whole=whole_keys) | column(writer, "values", values, whole=whole_values)
        found = writer.add("LabelEncoder", [codes], domain=DOMAIN, **table, **defaults(writer, whole=whole_values))
    return writer.end(writer.as_number(found) if whole_values else found)


def column(writer: Writer, what: str, numbers: list[int], *, whole: bool) -> dict[str, Any]:
    """Keys or values as an attribute; real ones are those numbers, which a code must meet exactly."""
    if writer.ml_opset >= 4 and writer.flag():
        kind = TensorProto.INT64 if whole else TensorProto.FLOAT
        return {f"{what}_tensor": helper.make_tensor(what, kind, [len(numbers)], numbers)}
    return {f"{what}_int64s": numbers} if whole else {f"{what}_floats": [float(number) for number in numbers]}


def defaults(writer: Writer, *, whole: bool) -> dict[str, Any]:
    """What stands for a number that is no key: nothing said, either or both of two attributes, or a tensor."""
    if writer.ml_opset >= 4 and writer.flag():
        kind = TensorProto.INT64 if whole else TensorProto.FLOAT
        return {"default_tensor": helper.make_tensor("default", kind, [1], [5])}
    return dict(
        writer.one_of({}, {"default_float": 2.5}, {"default_int64": 4}, {"default_float": 2.5, "default_int64": 4})
    )


DRAWINGS: dict[str, Drawing] = {
    f"{ML}Binarizer": binarizer,
    f"{ML}Imputer": imputer,
    f"{ML}LabelEncoder": label_encoder,
    f"{ML}OneHotEncoder": one_hot_encoder,
}
