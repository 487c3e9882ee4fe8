"""Chooses the input or output of an ONNX file that is meant, by name, or because only one can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from guard.errors import ModelError

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def chosen_output(file: Path, values: Sequence[onnx.ValueInfoProto], wanted: str | None) -> str:
    """Return the output that was asked for, or the only one that could hold scores. Raises ModelError.

    Example: of `output_label` (text) and `output_probability` (floats), as skl2onnx writes them, the second.
    """
    scores = [value.name for value in values if could_be_scores(value)]
    if wanted is None and len(values) > 1 and len(scores) == 1:
        return scores[0]
    return chosen(file, "output", [value.name for value in values], wanted, [in_words(value) for value in values])


def chosen(file: Path, what: str, names: list[str], wanted: str | None, shown: Sequence[str] = ()) -> str:
    """Return the name that was asked for, or the only one. Raises ModelError where there is neither."""
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return str(wanted)
    have = ", ".join(shown or names)
    if wanted is None:
        raise ModelError(f"{file} has {len(names)} {what}s ({have}); say which one to guard with --{what}-name")
    raise ModelError(f"{file} has no {what} {wanted!r} that counts; --{what}-name can be: {have}")


def could_be_scores(value: onnx.ValueInfoProto) -> bool:
    """Tell whether an output may hold scores [item] or [item, class]: floats, or ZipMap's maps from class to score."""
    if value.type.HasField("sequence_type"):
        return value.type.sequence_type.elem_type.HasField("map_type")
    tensor = value.type.tensor_type
    return tensor.elem_type in FLOATS and (not tensor.HasField("shape") or len(tensor.shape.dim) in (1, 2))


def in_words(value: onnx.ValueInfoProto) -> str:
    """Return an output's name, with its shape where the file says it."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return value.name
    sizes = (str(size.dim_value) if size.dim_value > 0 else size.dim_param or "any" for size in tensor.shape.dim)
    return f"{value.name} [{', '.join(sizes)}]"
