"""Answers of an .onnx file, run by ONNX Runtime as it is: forests, boosters, kernel machines, quantised networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import file_digest
from guard.errors import ModelError, first_line
from guard.offline.closed.closed_model import FROM_WHOLE, ClosedModel, in_rows
from guard.offline.model.onnx_import.class_names import class_names, class_numbers
from guard.offline.model.onnx_import.file import read_onnx
from guard.session import onnxruntime

TYPES: dict[str, tuple[str, type[Any]]] = {  # ONNX Runtime's name -> the wire's, and numpy's
    "tensor(float)": ("FP32", np.float32),
    "tensor(double)": ("FP64", np.float64),
    "tensor(float16)": ("FP16", np.float16),
    "tensor(uint8)": ("UINT8", np.uint8),
}
SCORES = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))", "tensor(float)", "tensor(double)")


def file_answers(
    file: Path, *, input_name: str | None = None, output_name: str | None = None, wanted: str = "logits"
) -> ClosedModel:
    """Return the model of an .onnx file as one that answers. Raises ModelError: it cannot be run on one tensor."""
    if not file.is_file():
        raise ModelError(f"--answers {file} does not exist; wanted an .onnx file, module:function, or HOST:PORT")
    proto = read_onnx(file)
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own untyped family
        raise ModelError(f"--answers {file} cannot be loaded by ONNX Runtime: {first_line(error)}") from error
    given = the_input(file, session.get_inputs())
    made = the_output(file, session.get_outputs(), output_name, wanted)
    datatype, dtype = TYPES[given.type]
    names, numbers = class_names(proto), class_numbers(proto)
    labels: list[Any] = [*names] or [*numbers]

    def ask(wire: NDArray[Any]) -> NDArray[Any]:
        try:
            (found,) = session.run([made.name], {given.name: np.ascontiguousarray(wire, dtype=dtype)})
        except Exception as error:  # onnxruntime raises its own untyped family
            raise ModelError(f"--answers {file} cannot be run on the data: {first_line(error)}") from error
        return by_class(found, labels) if isinstance(found, list) else np.asarray(found)

    fixed = given.shape[0] if isinstance(given.shape[0], int) else None
    return ClosedModel(
        reference=str(file),
        by="ONNX Runtime on a CPU",
        identity=file_digest(file),
        ask=ask if fixed is None else in_rows(ask, fixed),
        sizes=tuple(size if isinstance(size, int) else None for size in given.shape[1:]),
        datatype=datatype,
        input_name=input_name or given.name,
        output_name=made.name,
        names=names,
        numbers=numbers,
        kept=False,
    )


def the_input(file: Path, inputs: list[Any]) -> Any:
    """Return the one input of a file, whatever clients call it. Raises ModelError: several, or it takes no numbers."""
    if len(inputs) != 1:
        raise ModelError(
            f"--answers {file} takes {len(inputs)} inputs ({', '.join(one.name for one in inputs[:12])}); wanted one "
            "tensor [item, feature]: a pipeline that takes one input a column is exported with one, as "
            "to_onnx(model, X[:1].astype(numpy.float32)) of an array writes it"
        )
    if inputs[0].type not in TYPES:
        remedy = FROM_WHOLE if "int" in inputs[0].type else "encode text and categories as numbers before the model"
        raise ModelError(
            f"--answers {file}: input {inputs[0].name!r} is {inputs[0].type}; wanted one of {', '.join(TYPES)}: "
            f"{remedy}"
        )
    return inputs[0]


def the_output(file: Path, outputs: list[Any], name: str | None, wanted: str) -> Any:
    """Return the named output, else the first of scores, else the first. Raises ModelError for an unknown name."""
    by_name = {one.name: one for one in outputs}
    if name is not None:
        if name not in by_name:
            raise ModelError(f"--answers {file} has no output {name!r}; --output-name can be {', '.join(by_name)}")
        return by_name[name]
    scores = [one for one in outputs if one.type in SCORES]
    labels = [one for one in outputs if one not in scores]
    return [*(labels if wanted == "label" else scores), *outputs][0]


def by_class(answer: list[dict[Any, float]], labels: list[Any]) -> NDArray[np.float32]:
    """Return ZipMap's answer, a map from label to score for each item, as scores [item, class]."""
    order = labels if labels and set(labels) == set(answer[0]) else sorted(answer[0])
    return np.asarray([[scores[label] for label in order] for scores in answer], dtype=np.float32)
