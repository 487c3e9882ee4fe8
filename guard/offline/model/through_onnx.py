"""A torch model with operators that have no adjoint is written as ONNX and imported: the importer knows more of them.

Rule 1. A model whose operators all have adjoints, and that is the same in canonical form, stays as it is, layer for
layer.
Rule 2. What was written otherwise computes what the model computes: the import is held against ONNX Runtime on the
file, and the model itself against the import, in answers and gradients.

How it works. ONNX has some two hundred operators where torch has two thousand, and torch's exporter writes its own in
those; in-place writes become new tensors on the way. Example: `x.roll(1, 2)` becomes two slices, joined.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import fx

from guard.errors import ModelError
from guard.offline.model.agreement import fault_of
from guard.offline.model.gradient.coverage import without_adjoint
from guard.offline.model.onnx_export.export import lower
from guard.offline.model.onnx_import.graph_node import OTHERWISE, WITH_OTHERS
from guard.offline.model.onnx_import.importer import check_import, import_onnx
from guard.offline.model.several_outputs import single_path
from guard.value_box import ValueBox


def in_known_operators(graph: fx.GraphModule, box: ValueBox) -> fx.GraphModule:
    """Return a graph from wire values with channels first, or the same function in operators that have adjoints.

    Raises: ModelError naming the first operator without one, where ONNX does not help.
    """
    missing = without_adjoint(graph)
    why = f"{missing[0]} has no adjoint" if missing else fault_of(graph, graph, box)
    if why is None:
        return graph
    (start,) = [node for node in graph.graph.nodes if node.op == "placeholder"]
    value: Any = start.meta["val"]
    example = torch.zeros(1, *(int(size) for size in value.shape[1:]), dtype=value.dtype)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        try:
            with torch.no_grad():  # with it, torch refuses to trace what changes a part of a split in place
                onnx.save(lower(graph, example, input_name="input", output_names=("output",)), file)
            imported = import_onnx(file, tuple(example.shape[1:]))
            written = single_path(imported.program)
            check_import(imported, written, box)
        except ModelError as error:
            said = str(error).replace(str(file), "the file").replace(OTHERWISE, WITH_OTHERS)
            raise ModelError(f"{why}; written as ONNX the model is refused, too: {said}") from error
    if (fault := fault_of(written, graph, box)) is not None:
        raise ModelError(f"{why}, and written as ONNX {fault}; {WITH_OTHERS}")
    return written
