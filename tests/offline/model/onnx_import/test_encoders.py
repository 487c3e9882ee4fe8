"""Encoders of numbers as skl2onnx writes them: opened exactly, without a gradient; and files of double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.onnx_import.importer import import_onnx
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.several_outputs import single_path
from guard.session import onnxruntime
from tests.onnx_files import model_of

ML = "ai.onnx.ml"
FEATURES = 3  # two measured, then a category from 0 to 3
WEIGHT = np.random.default_rng(0).normal(0, 1, (6, 3)).astype(np.float32)


def op(kind: str, *names: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, names[:-1], names[-1:], domain=domain, **attributes)


def pipeline(file: Path, *encoder: onnx.NodeProto, columns: int, kind: int = TensorProto.FLOAT) -> Path:
    """Two features scaled, the third encoded, both joined before a linear layer and a softmax."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        op("ArrayFeatureExtractor", "input", "measured", "m", domain=ML),
        op("ArrayFeatureExtractor", "input", "coded", "c", domain=ML),
        *encoder,
        op("Concat", "m", "e", "joined", axis=1),
        op("MatMul", "joined", "weight", "scores"),
        op("Softmax", "scores", "output", axis=1),
    ]
    constants = {
        "measured": np.asarray([0, 1]),
        "coded": np.asarray([2]),
        "flat": np.asarray([-1, columns]),
        "weight": WEIGHT[: 2 + columns].astype(dtype),
    }
    model = model_of(nodes, constants, ["item", FEATURES], opset=17, kind=kind)
    model.opset_import.append(helper.make_opsetid(ML, 3))
    if kind == TensorProto.DOUBLE:
        model.graph.output[0].type.tensor_type.elem_type = kind
    onnx.save(model, file)
    return file


ENCODERS: dict[str, tuple[list[onnx.NodeProto], int]] = {
    "one hot": (
        [
            op("Cast", "c", "whole", to=TensorProto.INT64),
            op("OneHotEncoder", "whole", "hot", domain=ML, cats_int64s=[0, 1, 2, 3], zeros=1),
            op("Reshape", "hot", "flat", "e"),
        ],
        4,
    ),
    "ordinal": (
        [
            op("LabelEncoder", "c", "number", domain=ML, keys_floats=[0.0, 1.0, 2.0, 3.0], values_int64s=[3, 0, 1, 2]),
            op("Cast", "number", "e", to=TensorProto.FLOAT),
        ],
        1,
    ),
    "threshold": ([op("Binarizer", "c", "e", domain=ML, threshold=1.5)], 1),
    "imputer": (
        [op("Imputer", "c", "e", domain=ML, imputed_value_floats=[1.0], replaced_value_float=float("nan"))],
        1,
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_exact_and_has_no_gradient(name: str, tmp_path: Path) -> None:
    encoder, columns = ENCODERS[name]
    file = pipeline(tmp_path / "m.onnx", *encoder, columns=columns)
    high = (1.0, 1.0, 3.0)
    opened = open_model(Source(str(file), (FEATURES,), low=(0.0,) * 3, high=high, output="probabilities"))
    generator = np.random.default_rng(1)
    wire = np.concatenate([generator.random((8, 2)), generator.integers(0, 5, (8, 1))], axis=1).astype(np.float32)
    logits, gradient = with_gradient(opened.graph, seed=top_class)(torch.from_numpy(wire / np.float32(high)))
    session = onnxruntime().InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": wire})
    torch.testing.assert_close(logits.softmax(1), torch.from_numpy(expected))
    assert bool((gradient[:, :2] != 0).all())
    assert bool((gradient[:, 2] == 0).all()) is (name != "imputer")


def test_a_file_of_doubles_is_opened_in_float32_and_compared_with_itself(tmp_path: Path) -> None:
    encoder = [op("Identity", "c", "e")]
    file = pipeline(tmp_path / "m.onnx", *encoder, columns=1, kind=TensorProto.DOUBLE)
    opened = open_model(Source(str(file), (FEATURES,), output="probabilities"))
    assert opened.spec.input.datatype == "FP64"
    assert opened.served is not None
    given = np.random.default_rng(2).random((4, FEATURES), np.float32)
    torch.testing.assert_close(
        opened(torch.from_numpy(given)).softmax(1),
        torch.from_numpy(np.asarray(opened.served.answers(given), np.float32)),
    )


KEYS: dict[str, Any] = {"domain": ML, "keys_floats": [1.0, 2.0, 1.0]}
TRUE: dict[str, Any] = {"values_floats": [0.1, 0.7, 5.0]}
SUBTLE: dict[str, list[onnx.NodeProto]] = {
    "real values, default not given": [op("LabelEncoder", "input", "e", **KEYS, **TRUE)],
    "default of the other kind": [op("LabelEncoder", "input", "e", **KEYS, **TRUE, default_int64=4)],
    "whole values, default of the other kind": [
        op("LabelEncoder", "input", "e", **KEYS, values_int64s=[5, 6, 7], default_float=4.5)
    ],
    "whole values, which are divided as whole numbers": [
        op("LabelEncoder", "input", "whole", **KEYS, values_int64s=[5, 6, 7]),
        op("Div", "whole", "two", "e"),
    ],
    "default far from the values": [op("LabelEncoder", "input", "e", **KEYS, **TRUE, default_float=1e30)],
    "whole keys that are no float32": [
        op("Cast", "input", "small", to=TensorProto.INT64),
        op("Add", "small", "large", "codes"),
        op("LabelEncoder", "codes", "e", domain=ML, keys_int64s=[2**24, 2**24 + 1], values_floats=[1.0, 2.0]),
    ],
    "NaN that the graph makes": [
        op("Sqrt", "input", "roots"),
        op("Imputer", "roots", "e", domain=ML, imputed_value_floats=[7.0, 8.0, 9.0], replaced_value_float=float("nan")),
    ],
}


@pytest.mark.parametrize("name", SUBTLE)
def test_an_encoder_means_what_onnx_runtime_means(name: str, tmp_path: Path) -> None:
    nodes = [*SUBTLE[name], op("Cast", "e", "output", to=TensorProto.FLOAT)]
    constants = {"two": np.asarray(2), "large": np.asarray(2**24)}
    model = model_of(nodes, constants, ["item", FEATURES], opset=17)
    model.opset_import.append(helper.make_opsetid(ML, 3))
    onnx.save(model, tmp_path / "m.onnx")
    module = single_path(import_onnx(tmp_path / "m.onnx", (FEATURES,)).program)
    given = np.asarray([[0, 1, 2], [1, -1, 3], [2, 0, -3]], np.float32)
    session = onnxruntime().InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(module(torch.from_numpy(given)).numpy(), session.run(None, {"input": given})[0])


REFUSED = {
    "a category twice": (op("OneHotEncoder", "input", "e", domain=ML, cats_int64s=[1, 1]), r"twice \(\[1, 1\]\).*once"),
    "a number in the place of NaN": (op("Imputer", "input", "e", domain=ML, imputed_value_floats=[1.0]), "that step"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_encoder_that_cannot_be_opened_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    encoder, words = REFUSED[name]
    with pytest.raises(ModelError, match=words):
        open_model(Source(str(pipeline(tmp_path / "m.onnx", encoder, columns=1)), (FEATURES,)))


def test_a_table_of_words_is_refused_with_what_to_do(tmp_path: Path) -> None:
    words = op("LabelEncoder", "c", "e", domain=ML, keys_floats=[0.0, 1.0], values_strings=["a", "b"])
    file = pipeline(tmp_path / "m.onnx", words, columns=1)
    with pytest.raises(ModelError, match=r"LabelEncoder \(e\): a step that turns categories.*model behind that step"):
        open_model(Source(str(file), (FEATURES,)))


def test_one_input_a_column_is_refused_with_what_to_do(tmp_path: Path) -> None:
    columns = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["item", 1]) for name in "abc"]
    graph = helper.make_graph(
        [op("Concat", "a", "b", "c", "joined", axis=1), op("MatMul", "joined", "weight", "output")],
        "columns",
        columns,
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["item", 3])],
        [numpy_helper.from_array(WEIGHT[:3], "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"3 inputs \(a, b, c\).*each column of a table by itself; fit.*one input"):
        open_model(Source(str(tmp_path / "m.onnx"), (3,)))
