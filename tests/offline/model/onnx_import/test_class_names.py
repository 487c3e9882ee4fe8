"""A classifier of words, as skl2onnx writes it: its probabilities are guarded, its classes have its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from guard.errors import ModelError
from guard.offline.model.onnx_import.class_names import declared_names
from guard.offline.model.open_model import Source, open_model
from guard.serve.named_class import NamedOutput, class_named
from guard.session import onnxruntime
from tests.onnx_files import model_of

ML = "ai.onnx.ml"
NAMES = ("cat", "ant", "bee")  # in the model's order, which need not be that of the alphabet
WEIGHTS = np.random.default_rng(0).normal(0, 1, (3, 4)).astype(np.float32)


def ml(kind: str, given: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, given, outputs, domain=ML, **attributes)


def regression(names: tuple[str, ...], *, zipped: bool = False) -> onnx.ModelProto:
    """What skl2onnx makes of a scaler and a logistic regression: `output_label` and `output_probability`."""
    weights = WEIGHTS if len(names) == 3 else np.stack([-WEIGHTS[0], WEIGHTS[0]])
    nodes = [
        ml("Scaler", ["input"], ["scaled"], offset=[0.5] * 4, scale=[2.0] * 4),
        ml("LinearClassifier", ["scaled"], ["output_label", "scores"], classlabels_strings=list(names),
           coefficients=weights.ravel().tolist(), intercepts=[0.0] * len(names),
           post_transform="SOFTMAX" if len(names) == 3 else "LOGISTIC"),
        ml("Normalizer", ["scores"], ["normal" if zipped else "output_probability"], norm="L1"),
    ]  # fmt: skip
    if zipped:
        nodes.append(ml("ZipMap", ["normal"], ["output_probability"], classlabels_strings=list(names)))
    return finished(nodes, {}, len(names), zipped=zipped)


def perceptron(names: tuple[str, ...]) -> onnx.ModelProto:
    """What skl2onnx makes of a perceptron: two classes are one sigmoid, 1 - p joined to p; labels are looked up."""
    generator = np.random.default_rng(1)
    outputs = len(names) if len(names) > 2 else 1
    constants = {
        "hidden_weights": generator.normal(0, 1, (4, 8)).astype(np.float32),
        "weights": generator.normal(0, 1, (8, outputs)).astype(np.float32),
        "one": np.ones(1, np.float32),
        "classes": np.asarray(names, dtype=object),
    }
    nodes = [
        helper.make_node("MatMul", ["input", "hidden_weights"], ["product"]),
        helper.make_node("Relu", ["product"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "weights"], ["score"]),
    ]
    if outputs == 1:
        nodes += [
            helper.make_node("Sigmoid", ["score"], ["p"]),
            helper.make_node("Sub", ["one", "p"], ["q"]),
            helper.make_node("Concat", ["q", "p"], ["output_probability"], axis=1),
        ]
    else:
        nodes.append(helper.make_node("Softmax", ["score"], ["output_probability"], axis=1))
    nodes += [
        helper.make_node("ArgMax", ["output_probability"], ["best"], axis=1, keepdims=0),
        ml("ArrayFeatureExtractor", ["classes", "best"], ["output_label"]),
    ]
    read = {name for node in nodes for name in node.input}
    return finished(nodes, {name: value for name, value in constants.items() if name in read}, len(names))


def finished(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], classes: int, *, zipped: bool = False
) -> onnx.ModelProto:
    model = model_of(nodes, constants, ["item", 4], output="output_label", output_kind=TensorProto.STRING, opset=17)
    model.opset_import.append(helper.make_opsetid(ML, 3))
    value = helper.make_tensor_value_info("output_probability", TensorProto.FLOAT, ["item", classes])
    if zipped:
        pairs = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        value = helper.make_value_info("output_probability", helper.make_sequence_type_proto(pairs))
    model.graph.output.append(value)
    return model


FILES = {
    "regression": regression(NAMES),
    "regression, zipped": regression(NAMES, zipped=True),
    "two classes": regression(("no", "yes")),
    "two classes, zipped": regression(("no", "yes"), zipped=True),
    "perceptron": perceptron(NAMES),
    "perceptron of two": perceptron(("no", "yes")),
}


@pytest.mark.parametrize("output", ["probabilities", "logits"])
@pytest.mark.parametrize("name", FILES)
def test_the_probabilities_are_guarded_under_the_models_names(name: str, output: str, tmp_path: Path) -> None:
    """No output was named: the labels are text, so it is the other one. Both agree with ONNX Runtime on the file."""
    file = tmp_path / "m.onnx"
    onnx.save(FILES[name], file)
    opened = open_model(Source(str(file), (4,), output=output))
    spec = opened.spec.output
    names = ("no", "yes") if "two" in name else NAMES
    assert (spec.name, spec.labels, spec.classes, spec.single) == ("output_probability", names, len(names), False)
    items = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    session = onnxruntime().InferenceSession(str(file), providers=["CPUExecutionProvider"])
    labels, answers = session.run(["output_label", "output_probability"], {"input": items.numpy()})
    expected = np.asarray([[row[name] for name in names] for row in answers] if isinstance(answers, list) else answers)
    found = opened(items).detach().softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [names[number] for number in found.argmax(1)] == list(np.ravel(labels))


def test_names_are_read_before_anything_is_opened(tmp_path: Path) -> None:
    for name, model in FILES.items():
        onnx.save(model, tmp_path / "m.onnx")
        assert declared_names(str(tmp_path / "m.onnx")) == (("no", "yes") if "two" in name else NAMES)
    assert declared_names("some:factory") == ()


def test_two_lists_that_differ_name_nothing(tmp_path: Path) -> None:
    model = regression(NAMES, zipped=True)
    model.graph.node[-1].attribute[0].strings[0] = b"cow"
    onnx.save(model, tmp_path / "m.onnx")
    assert declared_names(str(tmp_path / "m.onnx")) == ()


def test_a_table_from_numbers_to_words_is_read_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    model = regression(NAMES)
    attributes = model.graph.node[1].attribute
    (place,) = [index for index, attribute in enumerate(attributes) if attribute.name == "classlabels_strings"]
    del attributes[place]
    attributes.append(helper.make_attribute("classlabels_ints", [0, 1, 2]))
    model.graph.node[1].output[0] = "number"
    coded = ml(
        "LabelEncoder", ["number"], ["output_label"], keys_int64s=[2, 0, 1], values_strings=["bee", "cat", "ant"]
    )
    model.graph.node.append(coded)
    onnx.save(model, tmp_path / "m.onnx")
    assert open_model(Source(str(tmp_path / "m.onnx"), (4,))).spec.output.labels == NAMES


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("numbers", [[1, 2, 3], [3, 7, 5], [5, 7]], ids=str)
def test_labels_and_probabilities_of_a_server_name_one_class(
    numbers: list[int], tmp_path: Path, *, zipped: bool
) -> None:
    model = regression(NAMES[: len(numbers)], zipped=zipped)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "classlabels_strings":
                listed = "classlabels_int64s" if node.op_type == "ZipMap" else "classlabels_ints"
                attribute.CopyFrom(helper.make_attribute(listed, numbers))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    if zipped:
        pairs = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        model.graph.output[1].type.CopyFrom(helper.make_sequence_type_proto(pairs))
    file = tmp_path / "m.onnx"
    onnx.save(model, file)
    spec = open_model(Source(str(file), (4,), output_name="output_probability")).spec.output
    assert spec.numbers == tuple(numbers)
    items = np.random.default_rng(0).random((20, 4), np.float32)
    session = onnxruntime().InferenceSession(str(file), providers=["CPUExecutionProvider"])
    labels, answers = session.run(["output_label", "output_probability"], {"input": items})
    shares = np.asarray([[row[number] for number in numbers] for row in answers] if zipped else answers)
    by_label, by_share = (
        class_named([NamedOutput(name, kind, lambda values=values: values.ravel(), list)], spec, len(items))
        for name, kind, values in (("predict", "INT64", labels), ("predict_proba", "FP64", shares))
    )
    assert by_label is not None
    assert by_share is not None
    np.testing.assert_array_equal(by_label, by_share)
    assert len(set(by_label.tolist())) > 1


def test_text_that_is_chosen_has_no_scores(tmp_path: Path) -> None:
    onnx.save(FILES["regression"], tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="'output_label' is text; wanted scores: name the output of probabilities"):
        open_model(Source(str(tmp_path / "m.onnx"), (4,), output_name="output_label"))
