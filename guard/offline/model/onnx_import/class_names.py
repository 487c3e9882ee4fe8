"""Names of classes that an ONNX file holds, as skl2onnx writes those of a classifier of words.

They stand in the classifier's own list, in ZipMap's, or in a table from which the class with the highest score takes
its name; their order is the order of the scores.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from guard.offline.model.onnx_import.file import read_onnx

LISTED = "classlabels_strings"  # of LinearClassifier, ZipMap and their like
LOOK_UPS = ("ArrayFeatureExtractor", "Gather")


def declared_names(model: str) -> tuple[str, ...]:
    """Return the names of a model's classes, in its order, as far as its file says them. Raises ModelError."""
    return class_names(read_onnx(Path(model), weights=False)) if model.endswith(".onnx") else ()


def class_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the classes; none where a file holds none, or several lists that differ."""
    tables = {
        tensor.name: tuple(decoded(name) for name in numpy_helper.to_array(tensor).reshape(-1))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.STRING
    }
    found: set[tuple[str, ...]] = set()
    for node in model.graph.node:
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        found.add(tuple(decoded(name) for name in values.get(LISTED, ())))
        if node.op_type == "LabelEncoder" and values.get("keys_int64s") and values.get("values_strings"):
            names = dict(zip(values["keys_int64s"], values["values_strings"], strict=True))
            if sorted(names) == list(range(len(names))):
                found.add(tuple(decoded(names[number]) for number in range(len(names))))
        if node.op_type in LOOK_UPS:
            found.add(tables.get(node.input[0], ()))
    found.discard(())
    return found.pop() if len(found) == 1 else ()


def decoded(name: bytes | str) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
