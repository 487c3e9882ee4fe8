"""Local functions are written out, whatever operator set they were made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from guard.errors import ModelError
from guard.offline.model.onnx_import.file import read_onnx
from guard.offline.model.open_model import Source, open_model
from tests.onnx_files import model_of

NEWER = [
    helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.asarray([1]))),
    helper.make_node("Unsqueeze", ["a", "axes"], ["wide"]),
    helper.make_node("ReduceSum", ["wide", "axes"], ["b"], keepdims=0),
]
OLDER = [
    helper.make_node("Unsqueeze", ["a"], ["wide"], axes=[1]),
    helper.make_node("ReduceSum", ["wide"], ["b"], axes=[1], keepdims=0),
]


def calling(body: list[onnx.NodeProto], version: int, opset: int, domain: str = "") -> onnx.ModelProto:
    """A model that calls a function of another operator set."""
    nodes = [
        helper.make_node("Same", ["input"], ["same"], domain="local"),
        helper.make_node("MatMul", ["same", "matrix"], ["output"]),
    ]
    model = model_of(nodes, {"matrix": np.eye(4, dtype=np.float32) * 3}, ["item", 4], opset=opset)
    sets = [helper.make_opsetid("", version), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model.functions.append(helper.make_function("local", "Same", ["a"], ["b"], body, sets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


@pytest.mark.parametrize("version", [13, 17, 18, 20])
def test_a_function_of_another_set_is_opened(version: int, tmp_path: Path) -> None:
    onnx.save(calling(NEWER, version, 17), tmp_path / "m.onnx")
    items = torch.rand(3, 4)
    torch.testing.assert_close(open_model(Source(str(tmp_path / "m.onnx"), (4,)))(items), items * 3)


@pytest.mark.parametrize(("body", "version", "opset"), [(OLDER, 11, 17), (NEWER, 18, 11)], ids=["older", "newer"])
def test_a_function_of_a_set_that_writes_it_otherwise_is_converted(
    body: list[onnx.NodeProto], version: int, opset: int, tmp_path: Path
) -> None:
    """Read rightly, it is: ONNX Runtime itself refuses such a file."""
    onnx.save(calling(body, version, opset), tmp_path / "m.onnx")
    items = np.random.default_rng(0).random((3, 4), np.float32)
    (found,) = ReferenceEvaluator(read_onnx(tmp_path / "m.onnx")).run(None, {"input": items})
    np.testing.assert_allclose(found, items * 3, rtol=1e-6)


def test_a_function_that_cannot_be_converted_names_both_sets(tmp_path: Path) -> None:
    """No set was ever without it, and none is so new."""
    onnx.save(calling([helper.make_node("Swish", ["a"], ["b"])], 24, 12), tmp_path / "m.onnx")
    words = r"local\.Same has the operator sets ai\.onnx 24, the model ai\.onnx 12, local 1.*No Previous Version"
    with pytest.raises(ModelError, match=words):
        read_onnx(tmp_path / "m.onnx")
