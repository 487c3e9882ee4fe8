"""Strategies for graphs of one operator that gives a norm or divides by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.offline.model.onnx_import.drawn_graphs import Drawn, Writer
from tests.offline.model.onnx_import.drawn_layers import image, kernel_of, window

Drawing = Callable[[Any], Drawn]


def norm_pool(draw: Any) -> Drawn:
    writer = Writer.begin(draw, ranks=(3,), opsets=(11, 18, 22))
    given, sizes = image(writer)
    kernel = kernel_of(writer, sizes)
    settings = window(writer, kernel)
    if writer.opset < 18:
        del settings["dilations"]
    else:
        settings["ceil_mode"] = writer.one_of(None, 0, 1)
    order = writer.one_of(None, 1, 2, 3)
    return writer.end(writer.add("LpPool", [given], kernel_shape=kernel, p=order, **settings))


def global_norm(draw: Any) -> Drawn:
    writer = Writer.begin(draw, ranks=(3,), opsets=(9, 20))
    given, _ = image(writer, 3)
    return writer.end(writer.add("GlobalLpPool", [given], p=writer.one_of(None, 1, 2, 3)))


def normalised(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(9, 20))
    axis = writer.one_of(None, writer.axis())
    return writer.end(writer.add("LpNormalization", ["input"], axis=axis, p=writer.one_of(None, 1, 2)))


def standardised(draw: Any) -> Drawn:
    """ONNX Runtime divides equal numbers by 0, where ONNX's text does not: there are two or more, of noise."""
    writer = Writer.begin(draw, ranks=(3,), opsets=(9, 13))
    writer.shape = (*writer.shape[:-1], max(3, writer.shape[-1]))
    axes = writer.one_of([2, 3], [1, 2, 3], [3], [-1, -2])
    drawn = writer.end(writer.add("MeanVarianceNormalization", ["input"], axes=axes))
    return replace(drawn, coarse=False)


DRAWINGS: dict[str, Drawing] = {
    "GlobalLpPool": global_norm,
    "LpNormalization": normalised,
    "LpPool": norm_pool,
    "MeanVarianceNormalization": standardised,
}
