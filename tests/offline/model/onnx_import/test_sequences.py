"""Parts that are taken out of a sequence open as slices of the tensor, as ONNX Runtime computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from guard.errors import ModelError
from guard.offline.model.onnx_import.importer import import_onnx, relative, run_file
from guard.offline.model.several_outputs import single_path
from tests.onnx_files import model_of

ITEMS = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)


def node(kind: str, given: str, made: str, **settings: Any) -> onnx.NodeProto:
    return helper.make_node(kind, given.split(), made.split(), name=f"the/{kind}", **settings)


def numbers(**values: Any) -> dict[str, Any]:
    return {name: np.asarray(value, np.int64) for name, value in values.items()}


def part(place: int, split: Any = None, *, axis: int = 1, **settings: Any) -> onnx.ModelProto:
    """One part of a tensor that is split."""
    given = "input" if split is None else "input split"
    nodes = [
        node("SplitToSequence", given, "parts", axis=axis, **settings),
        node("SequenceAt", "parts place", "output"),
    ]
    return model_of(nodes, numbers(place=place) | ({} if split is None else numbers(split=split)), ["item", 6, 4])


def chunk() -> onnx.ModelProto:
    """The second half, of a length that is computed from the tensor's size."""
    nodes = [
        node("Shape", "input", "sizes"),
        node("Gather", "sizes one", "length"),
        node("Div", "length two", "half"),
        node("SplitToSequence", "input half", "parts", axis=1),
        node("SequenceAt", "parts one", "output"),
    ]
    return model_of(nodes, numbers(one=1, two=2), ["item", 6, 4])


def listed(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    first = [node("Neg", "input", "negative"), node("SequenceConstruct", "input negative", "parts")]
    return model_of([*first, *nodes], numbers(last=-1), ["item", 6, 4])


CASES = {
    "even": part(1, 2),
    "shorter at the end": part(1, 4),
    "uneven": part(1, [1, 3, 2]),
    "uneven, from the end": part(-3, [1, 3, 2]),
    "each alone": part(3),
    "each alone, the last": part(-1),
    "each alone, without its axis": part(-2, keepdims=0),
    "each alone by a split of one": part(2, 1, keepdims=0),
    "along the last axis": part(1, 3, axis=-1),
    "a computed chunk": chunk(),
    "a list": listed(node("SequenceAt", "parts last", "output")),
    "joined": listed(node("ConcatFromSequence", "parts", "output", axis=-1)),
    "stacked": listed(node("ConcatFromSequence", "parts", "output", axis=1, new_axis=1)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_taken_out_of_a_sequence_is_a_slice(name: str, tmp_path: Path) -> None:
    onnx.save(CASES[name], tmp_path / "m.onnx")
    imported = import_onnx(tmp_path / "m.onnx", (6, 4))
    found = single_path(imported.program)(torch.from_numpy(ITEMS)).numpy()
    expected = run_file(imported, ITEMS)
    assert found.shape == expected.shape
    assert relative(found, expected) < 1e-6


@pytest.mark.parametrize(
    "model",
    [
        listed(node("SequenceLength", "parts", "length"), node("SequenceAt", "parts length", "output")),
        part(-1, 4),
        part(3, [3, 3]),
    ],
    ids=["read otherwise", "from an end that is not known", "beyond the last"],
)
def test_a_sequence_that_cannot_be_written_so_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"\(the/Se?\w+\): works on sequences.*dynamo=True"):
        import_onnx(tmp_path / "m.onnx", (6, 4))
