"""Every refusal names the node or the file's setting, says what it is, and gives a remedy that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from guard.errors import ModelError
from guard.offline.model.open_model import Source, open_model
from tests.onnx_files import model_of

MATRIX = np.eye(4, dtype=np.float32)
ML = "ai.onnx.ml"


def node_model(kind: str, domain: str = "", *, more: tuple[str, ...] = (), **attributes: Any) -> onnx.ModelProto:
    """A model whose one operator is that."""
    node = helper.make_node(kind, ["input", *more], ["output"], name="the/node", domain=domain, **attributes)
    given = {name: np.asarray([1.0], np.float32) for name in more}
    model = model_of([node], given, ["item", 4])
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def half(kind: int) -> onnx.ModelProto:
    """Weights and sums of half precision between two casts."""
    nodes = [
        helper.make_node("Cast", ["input"], ["short"], to=kind),
        helper.make_node("MatMul", ["short", "matrix"], ["product"], name="the/node"),
        helper.make_node("Cast", ["product"], ["output"], to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, {}, ["item", 4])
    model.graph.initializer.append(helper.make_tensor("matrix", kind, [4, 4], MATRIX.ravel()))
    return model


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = model_of([helper.make_node("MatMul", ["input", "matrix"], ["output"], name="the/node")], {"matrix": MATRIX},
                     ["item", 4])  # fmt: skip
    change(model)
    return model


def typed(kind: int) -> onnx.ModelProto:
    return changed(lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", kind))


def sparse(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("matrix", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 4]))


def sequence_input(model: onnx.ModelProto) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.input[0].type.CopyFrom(kind)


def sequence_output(model: onnx.ModelProto) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output[0].type.CopyFrom(kind)


def text_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING


def branching(kind: str) -> onnx.ModelProto:
    """A branch that the input's values choose, or a loop."""
    body = [helper.make_node("Neg", ["input"], ["turned"])], [helper.make_node("Identity", ["input"], ["same"])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("turned", "same")]
    graphs = [helper.make_graph(nodes, "branch", [], [out]) for nodes, out in zip(body, outputs, strict=True)]
    if kind == "If":
        nodes = [
            helper.make_node("ReduceSum", ["input"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["large"]),
            helper.make_node(
                "If", ["large"], ["output"], name="the/node", then_branch=graphs[0], else_branch=graphs[1]
            ),
        ]
        return model_of(nodes, {"zero": np.float32(0)}, ["item", 4])
    loop = helper.make_node(kind, ["input"], ["output"], name="the/node", body=graphs[0], num_scan_inputs=1)
    return model_of([loop], {}, ["item", 4])


TABLE: dict[str, tuple[onnx.ModelProto, str]] = {
    "a forest": (
        node_model("TreeEnsembleClassifier", ML),
        r"Classifier \(the/node\): a forest.*no gradient.*--answers \S+\.onnx in",
    ),
    "a newer forest": (node_model("TreeEnsemble", ML), r"TreeEnsemble \(the/node\): a forest of decision trees"),
    "a kernel machine": (
        node_model("SVMClassifier", ML),
        r"\(the/node\): a support vector machine.*--answers \S+\.onnx",
    ),
    **{
        kind: (node_model(kind, ML), rf"{kind} \(the/node\): a step that turns categories.*the model behind that step")
        for kind in ("LabelEncoder", "OneHotEncoder", "CategoryMapper", "Imputer", "DictVectorizer")
    },
    **{
        kind: (
            node_model(kind, more=("scale",)),
            rf"{kind} \(the/node\): an operator of a quantised model.*guard the float file",
        )
        for kind in ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger")
    },
    "a vendor's quantised": (node_model("QLinearAdd", "com.microsoft"), "quantised model.*the float file"),
    "a vendor's fused": (node_model("FusedConv", "com.microsoft"), "optimiser.*from before it was optimised"),
    "nobody's domain": (
        node_model("Polish", "my.company"),
        r"my\.company\.Polish \(the/node\): .*the domain 'my\.company'",
    ),
    "unknown to the importer": (node_model("Det"), r"Det \(the/node\): an operator that the importer does not know"),
    "random": (node_model("RandomNormalLike"), "draws random numbers.*evaluation mode"),
    "a sequence inside": (node_model("SequenceConstruct"), r"\(the/node\): works on sequences.*one tensor of floats"),
    "optional": (node_model("Optional"), r"\(the/node\): works on sequences, optional values"),
    "text inside": (node_model("StringNormalizer"), r"\(the/node\): works on .*text"),
    "a branch": (branching("If"), r"If \(the/node\): runs or not as the input's values decide.*torch\.where"),
    "a loop": (branching("Loop"), r"Loop \(the/node\): control flow.*without loops and branches"),
    "a scan": (branching("Scan"), r"Scan \(the/node\): control flow"),
    "bfloat16": (half(TensorProto.BFLOAT16), r"computes in half precision \(bfloat16\); give the \.pt2 or module"),
    "bfloat16 input": (
        typed(TensorProto.BFLOAT16),
        r"input 'input' is bfloat16; wanted FLOAT .*give the \.pt2 or",
    ),
    "int64 input": (typed(TensorProto.INT64), r"input 'input' is int64; wanted FLOAT .* inputs of that type"),
    "text input": (typed(TensorProto.STRING), "input 'input' is text; wanted FLOAT"),
    "sequence input": (changed(sequence_input), "input 'input' is a sequence; wanted a tensor of floats"),
    "sequence output": (changed(sequence_output), "output 'output' is a sequence; wanted a tensor of floats"),
    "text output": (changed(text_output), "output 'output' is text; wanted scores: .*--output-name"),
    "sparse weights": (changed(sparse), r"MatMul \(the/node\): has sparse weights; write them as dense"),
    "operator set too new": (
        changed(lambda m: setattr(m.opset_import[0], "version", 999)),
        "operator set 999; wanted 7 to",
    ),
    "operator set too old": (
        changed(lambda m: setattr(m.opset_import[0], "version", 5)),
        "operator set 5; wanted 7 to",
    ),
    "format too new": (
        changed(lambda m: setattr(m, "ir_version", 99)),
        r"format \(IR\) version 99; this onnx reads up to",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_is_refused_is_named_with_a_remedy(name: str, tmp_path: Path) -> None:
    model, words = TABLE[name]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=words) as caught:
        open_model(Source(str(tmp_path / "m.onnx"), (4,)))
    assert "\n" not in str(caught.value)
    assert "wrongly" not in str(caught.value)
    assert "module:factory that the file came from" not in str(caught.value)


def test_weights_that_are_kept_in_half_precision_are_read(tmp_path: Path) -> None:
    """They are float32 before anything is computed with them."""
    nodes = [
        helper.make_node("Cast", ["short"], ["matrix"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["input", "matrix"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("MatMul", ["positive", "matrix"], ["output"]),
    ]
    onnx.save(model_of(nodes, {"short": MATRIX.astype(np.float16) * 3}, ["item", 4]), tmp_path / "m.onnx")
    given = torch.rand(3, 4)
    torch.testing.assert_close(open_model(Source(str(tmp_path / "m.onnx"), (4,)))(given), given * 9)


# What is no fault of the import.


def linear_model(*nodes: onnx.NodeProto, batch: int | str = "item", **constants: Any) -> onnx.ModelProto:
    return model_of(nodes, {name: np.asarray(value, np.float32) for name, value in constants.items()}, [batch, 4])


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    model = linear_model(helper.make_node("Add", ["input", "shift"], ["moved"]),
                         helper.make_node("Log", ["moved"], ["output"]), shift=[-2.0] * 4)  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="not finite for images of its value box; check --range"):
        open_model(Source(str(tmp_path / "m.onnx"), (4,)))


def test_rounding_alone(tmp_path: Path) -> None:
    """What is left of large numbers that cancel: added up in another order it is another number."""
    wide = np.random.default_rng(0).normal(0, 1e3, (4, 512))
    back = np.linalg.pinv(wide)
    model = linear_model(
        helper.make_node("MatMul", ["input", "wide"], ["there"]),
        helper.make_node("MatMul", ["there", "back"], ["again"]),
        helper.make_node("Sub", ["again", "input"], ["output"]),
        wide=wide,
        back=back,
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"rounds so strongly that ONNX Runtime and torch differ by .* from float64"):
        open_model(Source(str(tmp_path / "m.onnx"), (4,)))
