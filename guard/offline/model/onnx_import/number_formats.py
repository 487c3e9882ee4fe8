"""The number formats of a file: which of them the guard computes in, and what is said of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from guard.errors import ModelError
from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.refusals import QUANTISED

BRAIN = "bfloat16"
TO_FLOAT = (
    "give the .pt2 or module:factory that it came from, which is opened in float32 and compared with the bfloat16 "
    "model; or export it in float32 (model.float()) and name this file with --served"
)


def refuse_formats(nodes: Sequence[Node], constants: Mapping[str, NDArray[Any]]) -> None:
    """Raise ModelError where a node computes in bfloat16, which ONNX Runtime mostly lacks, or in still fewer bits."""
    for node in nodes:
        names = [constants[name].dtype.name for name in node.inputs if name in constants]
        if node.kind in ("Cast", "CastLike") and "to" in node.attributes:
            names.append(name_of(node.get("to")))
        for name in names:
            if name == BRAIN:
                raise node.refuse(f"computes in half precision ({BRAIN})", TO_FLOAT)
            if name.startswith(("float8", "float4", "int4", "uint4", "int2", "uint2")):
                raise node.refuse(f"computes in {name}: {QUANTISED.why}", QUANTISED.remedy)


def name_of(kind: int) -> str:
    """Return an element type's name: float16, bfloat16, string ..."""
    if kind in (TensorProto.STRING, TensorProto.UNDEFINED):
        return "text" if kind == TensorProto.STRING else "of no type"
    return str(helper.tensor_dtype_to_np_dtype(kind).name)


def refuse_type(where: str, value: onnx.ValueInfoProto) -> None:
    """Raise ModelError for an input or output that is no tensor."""
    form = value.type.WhichOneof("value") or "tensor_type"
    if form != "tensor_type":
        raise ModelError(
            f"{where} is a {form.removesuffix('_type').replace('_', ' ')}; wanted a tensor of floats: export the part "
            "of the model that maps one tensor to another"
        )


def remedy_for(kind: int) -> str:
    """Return what to do about an input of another type than the wire has."""
    return TO_FLOAT if name_of(kind) == BRAIN else "export the model for inputs of that type"
