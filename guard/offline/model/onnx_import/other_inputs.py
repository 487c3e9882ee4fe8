"""Values for the inputs of an ONNX file that are not the guarded one: nothing that is answered depends on them.

Example: a file takes `x` and, for an operator that another output needs, `scale` of type double. ONNX Runtime wants
both, so `scale` is given as zeros. Where `training_mode` switches dropout on, it is given as False: the model answers
as in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from guard.offline.model.onnx_import.graph_node import Node

OTHER_INPUT = (
    ": export the model in evaluation mode (model.eval()), and write every other input down as a constant, as a module "
    "around the model that takes one tensor does"
)
# What operands of a dropout are in evaluation mode, by place: the share that it drops, and whether it does.
IN_EVALUATION: Mapping[int, NDArray[Any]] = {1: np.zeros((), np.float32), 2: np.zeros((), np.bool_)}


def other_inputs(session: Any, guarded: str, items: int) -> dict[str, Any]:
    """Return what an ONNX Runtime session is given for every input but the guarded one."""
    return {value.name: nothing_for(value, items) for value in session.get_inputs() if value.name != guarded}


def nothing_for(value: Any, items: int) -> Any:
    """Return zeros, False or empty text of an input's type; no parts of a sequence, None for an optional value."""
    form, _, kind = value.type.removesuffix(")").partition("(")
    if form != "tensor":
        return [] if form == "seq" else None
    sizes = [size if isinstance(size, int) else items for size in value.shape]
    if kind == "string":
        return np.full(sizes, "", dtype=object)
    return np.zeros(sizes, helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(kind.upper())))


def evaluation_settings(inputs: Sequence[str], nodes: Sequence[Node]) -> dict[str, NDArray[Any]]:
    """Return, by name, those inputs that only set dropouts, as evaluation mode sets them: nothing is dropped."""
    places: dict[str, set[int]] = {name: set() for name in inputs}
    for node in nodes:
        for place, name in enumerate(node.inputs):
            if name in places:
                places[name].add(place if node.kind == "Dropout" else 0)
        for name, _ in node.when:
            places.get(name, set()).add(0)
    return {name: IN_EVALUATION[min(read)] for name, read in places.items() if read and 0 not in read}
