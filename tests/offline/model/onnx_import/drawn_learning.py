"""Strategies for graphs of one operator of `ai.onnx.ml`, as scikit-learn's pipelines have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto

from guard.offline.model.onnx_import.refusals import ML
from tests.offline.model.onnx_import.drawn_graphs import Drawn, Writer

Drawing = Callable[[Any], Drawn]
TRANSFORMS = (None, None, "NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
DOMAIN = ML.rstrip(".")
SPARSE = (7, -2, 30, 1, 0)
WORDS = ("b", "a", "10", "9", "c")  # as names of classes: in no order


def begin(draw: Any, *, ranks: tuple[int, ...] = (1,)) -> Writer:
    return Writer.begin(draw, ranks=ranks, opsets=(11, 17, 20))


def reals(writer: Writer, count: int) -> list[float]:
    drawn = np.random.default_rng(writer.integer(0, 9)).normal(0, 1, count).astype(np.float32)
    return [float(value) for value in drawn]


def scaler(draw: Any) -> Drawn:
    writer = begin(draw, ranks=(1, 1, 3))
    count = writer.one_of(writer.shape[0], 1)
    return writer.end(
        writer.add("Scaler", ["input"], domain=DOMAIN, offset=reals(writer, count), scale=reals(writer, count))
    )


def normalizer(draw: Any) -> Drawn:
    writer = begin(draw)
    return writer.end(
        writer.add("Normalizer", ["input"], domain=DOMAIN, norm=writer.one_of("L1", "L2", "L1", "L2", "MAX", None))
    )


def features(draw: Any) -> Drawn:
    writer = begin(draw, ranks=(1, 1, 3))
    places = draw(st.lists(st.integers(0, writer.shape[-1] - 1), min_size=1, max_size=5))
    index = writer.constant(np.asarray(writer.one_of(places, [places]), np.int64))
    return writer.end(writer.add("ArrayFeatureExtractor", ["input", index], domain=DOMAIN))


def regressor(draw: Any) -> Drawn:
    writer = begin(draw)
    targets = writer.integer(1, 4)
    return writer.end(
        writer.add(
            "LinearRegressor",
            ["input"],
            domain=DOMAIN,
            coefficients=reals(writer, targets * writer.shape[0]),
            intercepts=writer.one_of(None, reals(writer, targets)),
            targets=writer.one_of(targets, None) if targets == 1 else targets,
            post_transform=writer.one_of(*TRANSFORMS),
        )
    )


def classes_of(writer: Writer, count: int) -> list[Any]:
    """Draw names of classes: numbers in order, as they are mostly, numbers in no order, or words."""
    in_order, mixed = list(range(count)), writer.draw(st.permutations(range(count)))
    return list(writer.one_of(in_order, in_order, mixed, SPARSE[:count], WORDS[:count]))


def by_type(classes: list[Any], numbers: str) -> dict[str, Any]:
    return {numbers if isinstance(classes[0], int) else "classlabels_strings": classes}


def linear_classifier(writer: Writer, classes: list[Any]) -> str:
    """Write a row of coefficients for each class, or of two classes one row; the scores."""
    rows = writer.one_of(2, 1) if len(classes) == 2 else len(classes)
    writer.add(
        "LinearClassifier",
        ["input"],
        2,
        domain=DOMAIN,
        coefficients=reals(writer, rows * writer.shape[0]),
        intercepts=reals(writer, rows),
        multi_class=writer.one_of(None, 0, 1),
        post_transform=writer.one_of(*TRANSFORMS),
        **by_type(classes, "classlabels_ints"),
    )
    return str(writer.nodes[-1].output[1])


def classifier(draw: Any) -> Drawn:
    writer = begin(draw)
    classes = classes_of(writer, writer.integer(2, 5))
    scores = linear_classifier(writer, classes)
    if isinstance(classes[0], int) and writer.integer(0, 2) == 0:
        return writer.end(writer.nodes[-1].output[0], TensorProto.INT64)
    return writer.end(scores)


def zip_map(draw: Any) -> Drawn:
    """Draw scores as a map for each item, of a classifier or of the input itself."""
    writer = begin(draw)
    if writer.flag():
        classes = classes_of(writer, writer.integer(2, 5))
        scores = linear_classifier(writer, classes)
    else:
        classes = classes_of(writer, min(5, writer.shape[0]))
        writer.shape = (len(classes),)
        scores = writer.add("Sigmoid", ["input"])
    return writer.end(writer.add("ZipMap", [scores], domain=DOMAIN, **by_type(classes, "classlabels_int64s")))


DRAWINGS: dict[str, Drawing] = {
    f"{ML}ArrayFeatureExtractor": features,
    f"{ML}LinearClassifier": classifier,
    f"{ML}LinearRegressor": regressor,
    f"{ML}Normalizer": normalizer,
    f"{ML}Scaler": scaler,
    f"{ML}ZipMap": zip_map,
}
