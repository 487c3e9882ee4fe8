"""A file that answers clients in the place of the model that the guard opens: a quantised or an optimised one.

Rule 1. It is run as it is by ONNX Runtime, never opened: it needs no gradient, only the same wire.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import ModelError, first_line
from guard.manifest import DATATYPES, ModelSpec
from guard.offline.model.onnx_import.other_inputs import other_inputs
from guard.offline.model.served import Served, ServedAs
from guard.session import onnxruntime

RUN_ITEMS = 32  # at once, of a file that takes any number
TYPES: dict[str, type[Any]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


def served_file(file: Path, spec: ModelSpec, ending: ServedAs, own: str) -> Served:
    """Return the model of an .onnx file as what is served; `own` is the guarded model's type of inputs.

    A server casts what clients send, so the file may take either where clients send another type.

    Raises:
        ModelError: it cannot be run, or has another wire.
    """
    if not file.is_file():
        raise ModelError(f"--served {file} does not exist; wanted the .onnx file that answers clients")
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own untyped family
        raise ModelError(f"--served {file} cannot be loaded by ONNX Runtime: {first_line(error)}") from error
    given = named(file, "input", session.get_inputs(), spec.input.name)
    made = named(file, "output", session.get_outputs(), spec.output.name)
    box = spec.input.box
    dtype = TYPES.get(given.type)
    if dtype is None or dtype not in (box.dtype, DATATYPES[own]):
        raise ModelError(
            f"--served {file} takes {given.type}, the guarded model {box.dtype}; wanted the same on the wire: keep the "
            "input's type when the file is converted (keep_io_types=True), or guard a model that takes the other"
        )

    def answers(wire: NDArray[np.float32]) -> NDArray[Any]:
        inputs = np.ascontiguousarray(box.to_layout(wire).astype(dtype))
        size = given.shape[0] if isinstance(given.shape[0], int) else RUN_ITEMS
        parts = [np.resize(inputs[i : i + size], (size, *inputs.shape[1:])) for i in range(0, len(inputs), size)]
        others = other_inputs(session, given.name, size)
        try:
            found = [session.run([made.name], {given.name: part, **others})[0] for part in parts]
            return np.concatenate(found)[: len(inputs)]
        except Exception as error:  # onnxruntime raises its own untyped family
            raise ModelError(f"--served {file} cannot be run on the data: {first_line(error)}") from error

    return Served(f"is {file.name}", "ONNX Runtime on a CPU", answers, ending)


def named(file: Path, what: str, values: list[Any], name: str) -> Any:
    """Return the input or output of a name. Raises ModelError where there is none: clients would ask for it in vain."""
    for value in values:
        if value.name == name:
            return value
    have = ", ".join(value.name for value in values)
    raise ModelError(
        f"--served {file} has no {what} {name!r}, which the guarded model has; it has: {have}; wanted the same names, "
        f"or --{what}-name for a model without names of its own"
    )
