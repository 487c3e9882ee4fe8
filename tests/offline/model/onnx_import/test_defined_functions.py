"""Operators that the table lacks and ONNX defines by others give what ONNX Runtime gives; see `defined_functions`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from guard.errors import ModelError
from guard.offline.model.onnx_import.defined_functions import with_functions_written_out
from guard.offline.model.onnx_import.graph import read_graph
from guard.offline.model.onnx_import.importer import import_onnx
from guard.offline.model.onnx_import.operator_table import FUNCTIONS
from tests.offline.model.onnx_import.test_operator_table import compare, ints, noise
from tests.onnx_files import model_of

node = helper.make_node
HEADS = {"q_num_heads": 2, "kv_num_heads": 2}
NEGATED = node("Neg", ["input"], ["key"])
FEWER = node("Slice", ["input", "zero", "four", "axis"], ["part"])
REPEATED = [
    node("Shape", ["input"], ["items"], start=0, end=1),
    node("Concat", ["items", "ones"], ["sizes"], axis=0),
    node("Expand", ["cosines", "sizes"], ["some cosines"]),
    node("Expand", ["sines", "sizes"], ["some sines"]),
]
LOWER = np.tril(np.ones((6, 6), bool))
# Of each: nodes, constants, the shape of an item, the operator set.
CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, NDArray[Any]], tuple[int, ...], int]] = {
    "RMSNormalization": (
        [node("RMSNormalization", ["input", "scale"], ["output"], epsilon=1e-3)],
        {"scale": noise(5)},
        (4, 6, 5),
        23,
    ),
    "RMSNormalization of two axes": (
        [node("RMSNormalization", ["input", "scale"], ["output"], axis=-2)],
        {"scale": noise(6, 5)},
        (4, 6, 5),
        23,
    ),
    "RotaryEmbedding": (
        [*REPEATED, node("RotaryEmbedding", ["input", "some cosines", "some sines"], ["output"])],
        {"ones": ints(1, 1), "cosines": noise(1, 6, 4), "sines": noise(1, 6, 4, seed=1)},
        (2, 6, 8),
        23,
    ),
    "RotaryEmbedding of a part, interleaved": (
        [
            *REPEATED,
            node(
                "RotaryEmbedding",
                ["input", "some cosines", "some sines"],
                ["output"],
                interleaved=1,
                rotary_embedding_dim=4,
            ),
        ],
        {"ones": ints(1, 1), "cosines": noise(1, 6, 2), "sines": noise(1, 6, 2, seed=1)},
        (2, 6, 8),
        23,
    ),
    "CenterCropPad": (
        [node("CenterCropPad", ["input", "sizes"], ["output"], axes=[2, 3])],
        {"sizes": ints(3, 8)},
        (4, 6, 5),
        18,
    ),
    "CastLike of a number": (
        [node("CastLike", ["two", "input"], ["real"]), node("Mul", ["input", "real"], ["output"])],
        {"two": np.asarray(2)},
        (4,),
        19,
    ),
    "CastLike beside casts of an older operator set": (
        [
            node(
                "Cast",
                [
                    "two",
                ],
                ["real two"],
                to=TensorProto.FLOAT,
            ),
            node("CastLike", ["one", "input"], ["real"]),
            node("Add", ["real", "real two"], ["three"]),
            node("Mul", ["input", "three"], ["output"]),
        ],
        {"one": np.asarray(1), "two": np.asarray(2)},
        (4,),
        15,
    ),
    "CastLike of a size": (
        [
            node("Shape", ["input"], ["size"], start=1, end=2),
            node("CastLike", ["size", "input"], ["real"]),
            node("Div", ["input", "real"], ["output"]),
        ],
        {},
        (4,),
        19,
    ),
    "CastLike among sizes": (
        [
            node("Shape", ["input"], ["sizes"]),
            node("CastLike", ["sizes", "one"], ["whole"]),
            node("Reshape", ["input", "pairs"], ["folded"]),
            node("Neg", ["folded"], ["turned"]),
            node("Reshape", ["turned", "whole"], ["output"]),
        ],
        {"one": np.asarray(1), "pairs": ints(0, 2, 2)},
        (4,),
        19,
    ),
    "Attention of heads side by side": (
        [NEGATED, node("Attention", ["input", "key", "input"], ["output"], **HEADS)],
        {},
        (6, 8),
        23,
    ),
    "Attention of heads side by side, causal": (
        [NEGATED, node("Attention", ["input", "key", "input"], ["output"], is_causal=1, **HEADS)],
        {},
        (6, 8),
        23,
    ),
    "Attention of heads side by side, by a mask": (
        [NEGATED, node("Attention", ["input", "key", "input", "mask"], ["output"], **HEADS)],
        {"mask": LOWER},
        (6, 8),
        23,
    ),
    "Attention with a soft cap": (
        [NEGATED, node("Attention", ["input", "key", "input", "bias"], ["output"], softcap=2.0)],
        {"bias": noise(6, 6)},
        (2, 6, 8),
        23,
    ),
    "Attention of grouped queries": (
        [FEWER, node("Attention", ["input", "part", "part"], ["output"], q_num_heads=4, kv_num_heads=2)],
        {"zero": ints(0), "four": ints(4), "axis": ints(2)},
        (6, 8),
        23,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_definition_gives_is_what_onnx_runtime_gives(name: str, tmp_path: Path) -> None:
    nodes, constants, shape, opset = CASES[name]
    compare(model_of(nodes, constants, ["item", *shape], opset=opset), tmp_path, shape)


def test_results_keep_their_names(tmp_path: Path) -> None:
    """By them taps are called."""
    nodes, constants, shape, opset = CASES["RMSNormalization"]
    onnx.save(model_of(nodes, constants, ["item", *shape], opset=opset), tmp_path / "m.onnx")
    graph = read_graph(tmp_path / "m.onnx")
    assert graph.output == "output"
    assert graph.nodes[-1].outputs == ("output",)
    assert {step.kind for step in graph.nodes} >= {"Mul", "ReduceMean", "Sqrt", "Div"}


def test_a_file_of_half_precision(tmp_path: Path) -> None:
    """Its float form is written out, and run as it was."""
    nodes = [node("RMSNormalization", ["input", "scale"], ["output"])]
    model = model_of(nodes, {}, ["item", 6, 5], kind=TensorProto.FLOAT16, output_kind=TensorProto.FLOAT16, opset=23)
    model.graph.initializer.append(numpy_helper.from_array(noise(5).astype(np.float16), "scale"))
    compare(model, tmp_path, (6, 5))
    assert read_graph(tmp_path / "m.onnx").formats == ("float16",)


def test_what_the_table_has_stays(tmp_path: Path) -> None:
    model = model_of([node("HardSwish", ["input"], ["output"])], {}, ["item", 4])
    assert with_functions_written_out(model, FUNCTIONS.keys()) is model


def test_large_weights_are_left_where_they_are() -> None:
    nodes = [
        node("MatMul", ["input", "matrix"], ["hidden"]),
        node("RMSNormalization", ["hidden", "scale"], ["output"]),
    ]
    model = model_of(nodes, {"matrix": noise(64, 64), "scale": noise(64)}, ["item", 64], opset=23)
    before = model.SerializeToString()
    written = with_functions_written_out(model, FUNCTIONS.keys())
    assert model.SerializeToString() == before
    assert list(written.graph.initializer) == list(model.graph.initializer)
    assert "RMSNormalization" not in {one.op_type for one in written.graph.node}


def test_a_type_that_cannot_be_told(tmp_path: Path) -> None:
    """Behind an operator that nobody knows, CastLike is the table's."""
    nodes = [
        node("Polish", ["input"], ["polished"], domain="my.company"),
        node("CastLike", ["two", "polished"], ["real"]),
        node("Mul", ["polished", "real"], ["output"]),
    ]
    model = model_of(nodes, {"two": np.asarray(2)}, ["item", 4], opset=19)
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"my\.company\.Polish"):
        import_onnx(tmp_path / "m.onnx", (4,))


def test_an_operator_newer_than_its_operator_set(tmp_path: Path) -> None:
    nodes, constants, shape, _ = CASES["RMSNormalization"]
    onnx.save(model_of(nodes, constants, ["item", *shape], opset=20), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"RMSNormalization \(output\): an operator that the importer does not know"):
        import_onnx(tmp_path / "m.onnx", shape)


@pytest.mark.parametrize(
    ("kind", "operands", "words"),
    [
        ("Hardmax", {}, r"Hardmax \(output\): one for the largest.*no gradient; name the scores.*--output-name"),
        ("GridSample", {"grid": noise(1, 6, 5, 2)}, r"GridSample \(output\): reads places that the input's values"),
    ],
)
def test_what_has_no_gradient_here_is_refused_by_name(
    kind: str, operands: dict[str, Any], words: str, tmp_path: Path
) -> None:
    model = model_of([node(kind, ["input", *operands], ["output"])], operands, ["item", 4, 6, 5])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=words):
        import_onnx(tmp_path / "m.onnx", (4, 6, 5))
