"""Strategies for graphs that turn numbers of the input into codes, and codes into one-hot rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from tests.offline.model.onnx_import.drawn_graphs import Drawn, Writer

Drawing = Callable[[Any], Drawn]
MAX_CODES = 5


def one_hot(draw: Any) -> Drawn:
    """Draw codes from below zero to beyond the last, which is all that the operator must know what to do with."""
    writer = Writer.begin(draw, opsets=(13, 16, 18, 20), size=4)
    depth = writer.integer(1, MAX_CODES)
    spread = writer.add("Mul", ["input", writer.constant(np.float32(depth + 2))])
    codes = writer.add("Cast", [spread], to=TensorProto.INT64)
    values = writer.constant(np.asarray([writer.integer(-1, 0), writer.integer(1, 2)], np.float32))
    axis = writer.one_of(-1, 1, writer.rank)
    return writer.end(writer.add("OneHot", [codes, writer.constant(np.asarray([depth])), values], axis=axis))


DRAWINGS: dict[str, Drawing] = {"OneHot": one_hot}
