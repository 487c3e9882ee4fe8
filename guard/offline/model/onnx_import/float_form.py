"""The float32 form of a file: the same model in the numbers that the guard computes in, and what was changed for it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from guard.offline.model.onnx_import.half_precision import DOUBLE, HALF, computes_in_half, in_float32, takes_doubles
from guard.offline.model.onnx_import.quantised import dequantised, is_quantised


@dataclass(frozen=True)
class FloatForm:
    """A file's model in float32, and the formats of other widths that it computes in; none where it is the same."""

    model: onnx.ModelProto
    formats: tuple[str, ...]


def float_form(model: onnx.ModelProto) -> FloatForm:
    """Return the float32 form of a file; what has none is left for the table of operators to refuse."""
    formats: list[str] = []
    if computes_in_half(model):
        model = in_float32(model, HALF)
        formats.append("float16")
    if takes_doubles(model):
        model = in_float32(model, DOUBLE)
        formats.append("float64")
    if is_quantised(model):
        model = dequantised(model)
        formats.append("quantised numbers (QDQ)")
    return FloatForm(model, tuple(formats))
