"""Names of classes that an ONNX file holds, as skl2onnx writes those of a classifier: words, or numbers.

They stand in the classifier's own list, in ZipMap's, or in a table from which the class with the highest score takes
its name; their order is the order of the scores.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from guard.offline.model.onnx_import.file import read_onnx

LISTED = "classlabels_strings"  # of LinearClassifier, ZipMap and their like
NUMBERED = ("classlabels_ints", "classlabels_int64s")
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


def class_numbers(model: onnx.ModelProto) -> tuple[int, ...]:
    """Return the labels that a file lists as numbers, in the order of its scores; none where it has none, or several.

    Labels that run from 0 on are their own places, and are left out.
    """
    lists = {
        tuple(helper.get_attribute_value(attribute))
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name in NUMBERED
    }
    lists |= {
        tuple(numpy_helper.to_array(tensor).ravel().tolist())
        for node in model.graph.node
        if node.op_type == "ArrayFeatureExtractor"
        for tensor in model.graph.initializer
        if tensor.name == node.input[0] and tensor.data_type in (TensorProto.INT32, TensorProto.INT64)
    }
    lists.discard(())
    found = lists.pop() if len(lists) == 1 else ()
    return () if found == tuple(range(len(found))) else found


def decoded(name: bytes | str) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
