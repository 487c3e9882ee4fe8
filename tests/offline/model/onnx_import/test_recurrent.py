"""Recurrent layers: what ONNX Runtime gives, in every direction and with every operand, and torch's gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import with_gradient
from guard.offline.model.onnx_import.importer import import_onnx, relative, run_file
from guard.offline.model.several_outputs import single_path
from tests.onnx_files import model_of

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TIMES, FEATURES, WIDTH = 4, 5, 3
SHAPE = (1, TIMES, FEATURES)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.7, shape).astype(np.float32)


def layer(
    kind: str, *, batch: int | str = "item", output: int = 0, operands: str = "all", **attributes: Any
) -> onnx.ModelProto:
    """A layer on the rows of an image [item, 1, time, feature], of which one output is given item first."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    gates, turned = GATES[kind], attributes.get("layout", 0)
    constants: dict[str, NDArray[Any]] = {
        "w": noise(directions, gates * WIDTH, FEATURES, seed=1),
        "r": noise(directions, gates * WIDTH, WIDTH, seed=2),
        "b": noise(directions, 2 * gates * WIDTH, seed=3),
        "axis": np.asarray([1]),
    }
    more = []
    if operands == "all" and isinstance(batch, int):
        state = np.repeat(noise(directions, 1, WIDTH, seed=4), batch, axis=1)
        constants["h"] = np.ascontiguousarray(state.transpose(1, 0, 2)) if turned else state
        more = ["", "h"]
        if kind == "LSTM":
            constants |= {"c": constants["h"] * 0.5, "p": noise(directions, 3 * WIDTH, seed=5)}
            more += ["c", "p"]
    order = [0, 1, 2] if turned else [1, 0, 2]
    first = {0: [0, 1, 2, 3] if turned else [2, 0, 1, 3]}.get(output, [0, 1, 2] if turned else [1, 0, 2])
    given = ["turned", "w", "r", *(["b"] if operands == "all" else [])]
    nodes = [
        helper.make_node("Squeeze", ["input", "axis"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["turned"], perm=order),
        helper.make_node(kind, [*given, *more], ["y", "y_h", *(["y_c"] if kind == "LSTM" else [])],
                         hidden_size=WIDTH, **attributes),
        helper.make_node("Transpose", [("y", "y_h", "y_c")[output]], ["output"], perm=first),
    ]  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in {n for node in nodes for n in node.input}}
    return model_of(nodes, constants, [batch, *SHAPE])


def imported(model: onnx.ModelProto, file: Path, items: int = 5) -> tuple[NDArray[Any], NDArray[Any]]:
    """The import's answers and ONNX Runtime's, on more items than the file may be fixed to."""
    onnx.save(model, file)
    read = import_onnx(file, SHAPE)
    images = noise(items, *SHAPE, seed=9)
    with torch.no_grad():
        found = single_path(read.program)(torch.from_numpy(images)).numpy()
    return found, run_file(read, images)


@pytest.mark.parametrize("batch", ["item", 1, 2])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_a_layer_is_what_onnx_runtime_gives(kind: str, direction: str, batch: int | str, tmp_path: Path) -> None:
    found, expected = imported(layer(kind, direction=direction, batch=batch), tmp_path / "m.onnx")
    assert found.shape == expected.shape
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"output": 1}),
        ("LSTM", {"output": 2, "direction": "bidirectional"}),
        ("LSTM", {"input_forget": 1, "batch": 2}),
        ("LSTM", {"operands": "few"}),
        ("RNN", {"activations": ["Relu"], "operands": "few"}),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}),
    ],
    ids=str,
)
def test_its_settings(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    found, expected = imported(layer(kind, **settings), tmp_path / "m.onnx")
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_layout_1_is_layout_0_turned(kind: str, tmp_path: Path) -> None:
    """ONNX Runtime has no layout 1, so ONNX's own reference is asked."""
    model = layer(kind, layout=1, output=1, batch=2)
    onnx.save(model, tmp_path / "m.onnx")
    images = noise(2, *SHAPE, seed=9)
    with torch.no_grad():
        found = single_path(import_onnx(tmp_path / "m.onnx", SHAPE).program)(torch.from_numpy(images)).numpy()
    (expected,) = ReferenceEvaluator(model).run(None, {"input": images})
    plain, _ = imported(layer(kind, output=1, batch=2), tmp_path / "m.onnx", items=2)
    assert relative(found, plain) < 1e-5
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, r"GRU \(y\): its activation HardSigmoid is none of Sigmoid"),
        ("LSTM", {"clip": 0.5}, r"LSTM \(y\): clips its gates"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_there_is_named(kind: str, settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    onnx.save(layer(kind, **settings), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=words):
        import_onnx(tmp_path / "m.onnx", SHAPE)


def test_time_along_the_batch_is_refused(tmp_path: Path) -> None:
    """As where batch_first was forgotten."""
    constants = {"w": noise(1, WIDTH, FEATURES), "r": noise(1, WIDTH, WIDTH), "axis": np.asarray([1])}
    nodes = [
        helper.make_node("Squeeze", ["input", "axis"], ["rows"]),
        helper.make_node("RNN", ["rows", "w", "r"], ["output"], hidden_size=WIDTH),
    ]
    onnx.save(model_of(nodes, constants, ["item", *SHAPE]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"no fixed length, or is the batch; export the model with batch_first=True"):
        import_onnx(tmp_path / "m.onnx", SHAPE)


def test_the_gradient_runs_back_through_time(tmp_path: Path) -> None:
    onnx.save(layer("LSTM", direction="bidirectional", operands="few"), tmp_path / "m.onnx")
    graph = single_path(import_onnx(tmp_path / "m.onnx", SHAPE).program)
    constants = {
        t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    own = nn.LSTM(FEATURES, WIDTH, bidirectional=True, bias=False, batch_first=True)
    order = torch.cat([torch.arange(WIDTH) + WIDTH * gate for gate in (0, 2, 3, 1)])  # i, o, f, c to torch's i, f, c, o
    with torch.no_grad():
        for direction, end in enumerate(("", "_reverse")):
            getattr(own, f"weight_ih_l0{end}").copy_(constants["w"][direction][order])
            getattr(own, f"weight_hh_l0{end}").copy_(constants["r"][direction][order])
    images = torch.tensor(noise(3, *SHAPE, seed=9)).requires_grad_()
    states = own(images[:, 0])[0]
    (wanted,) = torch.autograd.grad(states.sum(), images)
    _, gradient = with_gradient(graph, seed=torch.ones_like)(images.detach())
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
