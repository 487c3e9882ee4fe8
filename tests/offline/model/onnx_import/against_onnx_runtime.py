"""One operator on its own, as the importer's table computes it and as ONNX Runtime does: in a millisecond each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operator_table import FUNCTIONS, SETTINGS
from tests.onnx_files import model_of

Operands = Sequence[NDArray[Any] | None]


def by_table(
    kind: str, x: NDArray[np.float32], operands: Operands, opset: int, attributes: dict[str, Any]
) -> NDArray[Any]:
    """What the table's function gives, outside of any graph."""
    node = Node(kind, "", ("input",), ("output",), attributes, opset)
    settings = SETTINGS.get(kind, ())
    given = [v if v is None or place in settings else torch.from_numpy(v) for place, v in enumerate(operands, 1)]
    found: NDArray[Any] = FUNCTIONS[kind](node, torch.from_numpy(x), *given).numpy()
    return found


def by_onnx_runtime(
    kind: str, x: NDArray[np.float32], operands: Operands, opset: int, attributes: dict[str, Any]
) -> NDArray[Any] | None:
    """What ONNX Runtime gives; None where it does not run such a node."""
    names = [f"c{place}" if value is not None else "" for place, value in enumerate(operands)]
    constants = {name: np.asarray(value) for name, value in zip(names, operands, strict=True) if name}
    node = helper.make_node(kind, ["input", *names], ["output"], **attributes)
    model = model_of([node], constants, list(x.shape), opset=opset)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        answer: NDArray[Any] = session.run(None, {"input": x})[0]
    except Exception:  # noqa: BLE001  its errors have no common type
        return None
    return answer
