"""The operators of `ai.onnx.ml` that are plain algebra: what ONNX Runtime gives, as skl2onnx writes pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.onnx_import.importer import import_onnx, relative, run_file
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.several_outputs import single_path
from tests.onnx_files import model_of

ML = "ai.onnx.ml"
COEFFICIENTS = [float(value) for value in np.random.default_rng(0).normal(0, 1, 12)]
LINEAR = {"coefficients": COEFFICIENTS, "intercepts": [0.1, -0.2, 0.3]}


def saved(file: Path, *nodes: onnx.NodeProto, shape: tuple[int, ...] = (4,), **constants: Any) -> Path:
    model = model_of(list(nodes), constants, ["item", *shape], opset=17)
    model.opset_import.append(helper.make_opsetid(ML, 3))
    onnx.save(model, file)
    return file


def op(kind: str, *given: str, outputs: tuple[str, ...] = ("output",), **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, given or ["input"], list(outputs), domain=ML, **attributes)


def classifier(transform: str) -> onnx.NodeProto:
    labels = {"classlabels_ints": [0, 1, 2], "post_transform": transform}
    return op("LinearClassifier", "input", outputs=("label", "output"), **LINEAR, **labels)


PIPELINES: dict[str, list[onnx.NodeProto]] = {
    "scaler": [op("Scaler", offset=[0.1, 0.2, 0.3, 0.4], scale=[1.0, 2.0, 3.0, 4.0])],
    "scaler of one number": [op("Scaler", offset=[0.5], scale=[2.0])],
    "normalizer L1": [op("Normalizer", norm="L1")],
    "normalizer L2": [op("Normalizer", norm="L2")],
    "regressor": [op("LinearRegressor", targets=3, **LINEAR)],
    **{f"classifier {transform}": [classifier(transform)] for transform in ("NONE", "SOFTMAX", "LOGISTIC")},
    "features": [op("ArrayFeatureExtractor", "input", "places")],
}


@pytest.mark.parametrize("name", PIPELINES)
def test_an_operator_gives_what_onnx_runtime_gives(name: str, tmp_path: Path) -> None:
    nodes = PIPELINES[name]
    more = {"places": np.asarray([2, 0])} if len(nodes[0].input) > 1 else {}
    imported = import_onnx(saved(tmp_path / "m.onnx", *nodes, **more), (4,))
    given = np.random.default_rng(1).random((5, 4), np.float32)
    expected = run_file(imported, given)
    with torch.no_grad():
        found = single_path(imported.program)(torch.from_numpy(given)).numpy()
    assert found.shape == expected.shape
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("node", "shape", "words"),
    [
        (op("LinearRegressor", coefficients=COEFFICIENTS[:4], post_transform="LOGISTIC"), (4,), "behind one target"),
        (op("Scaler", offset=[0.1, 0.2, 0.3], scale=[1.0, 2.0, 3.0]), (3, 2, 1), "scales 4 axes by a list"),
        (
            op("LinearClassifier", outputs=("label", "output"), coefficients=COEFFICIENTS[:4], classlabels_ints=[0, 1]),
            (4,),
            "has one row of coefficients for two classes",
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_what_onnx_runtime_reads_otherwise_is_refused(
    node: onnx.NodeProto, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    file = saved(tmp_path / "m.onnx", node, shape=shape)
    with pytest.raises(ModelError, match=rf"{node.op_type} \(\w+\): .*{words}"):
        import_onnx(file, shape)


@pytest.mark.parametrize("classes", [[0, 1, 2], [2, 0, 1], ["b", "c", "a"]], ids=str)
def test_a_pipeline_of_scikit_learn(classes: list[Any], tmp_path: Path) -> None:
    """Scaled, classified, its scores as a map for each item: guarded by the scores, with their gradient.

    ONNX Runtime's map is sorted by class, the scores are in the order in which the file names the classes.
    """
    kind, numbered = (TensorProto.INT64, "int64s") if isinstance(classes[0], int) else (TensorProto.STRING, "strings")
    named = {f"classlabels_{numbered.replace('int64s', 'ints')}": classes}
    scaled = op("Scaler", outputs=("scaled",), offset=[0.5] * 4, scale=[2.0] * 4)
    linear = op("LinearClassifier", "scaled", outputs=("label", "scores"),
                post_transform="SOFTMAX", **named, **LINEAR)  # fmt: skip
    file = saved(tmp_path / "m.onnx", scaled, linear, op("ZipMap", "scores", **{f"classlabels_{numbered}": classes}))
    model = onnx.load(file)
    pairs = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(pairs))
    onnx.save(model, file)
    opened = open_model(Source(str(file), (4,), output="probabilities"))
    given = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor(COEFFICIENTS).reshape(3, 4)
    logits, gradient = with_gradient(opened.graph, seed=top_class)(given)
    torch.testing.assert_close(logits, (given - 0.5) * 2 @ weight.T + torch.tensor(LINEAR["intercepts"]))
    torch.testing.assert_close(gradient, 2 * weight[logits.argmax(1)])
