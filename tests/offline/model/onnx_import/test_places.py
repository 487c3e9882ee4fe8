"""Places that run over the batch: each item reads its own numbers, or the file is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.onnx_import.importer import import_onnx, run_file
from guard.offline.model.onnx_import.row_numbers import places_of_items, places_of_rows, row_range
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.several_outputs import single_path
from tests.onnx_files import BATCHES, model_of, write_onnx

SHAPE = (3, 8, 8)


class Rearranged(nn.Module):
    """A rearrangement of an image's numbers, then a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(0)
        features = function(torch.zeros(2, *SHAPE)).flatten(1).shape[1]
        self.head = nn.Parameter(torch.randn(features, 4, generator=generator), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.function(images).flatten(1)) @ self.head


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 2:4] = 0.5
    y[:, 0, 1:3] = x[:, 1, 4:6]
    return y


def blank(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :, 1:5, 2:6] = x[:, :, 4:, 4:]
    return y


REARRANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "as_strided": lambda x: x.as_strided((x.shape[0], 3, 4, 4), (192, 64, 16, 2), 3),
    "as_strided, overlapping": lambda x: x.as_strided((x.shape[0], 5, 8), (192, 16, 3)),
    "unfold": lambda x: x.unfold(2, 3, 2),
    "im2col": lambda x: functional.unfold(x, 3, stride=2),
    "list": lambda x: x[:, [2, 0, 1]][:, :, [0, 3, 3, 1]],
    "pairs": lambda x: x[:, :, [[0, 3], [3, 1]], [[1, 3], [3, 2]]],
    "uneven pool": lambda x: functional.adaptive_avg_pool2d(x, (3, 5)),
    "flip": lambda x: x.flip(3),
    "roll": lambda x: x.roll((3, -2), (2, 3)),
    "reflect": lambda x: functional.pad(x, (1, 2, 1, 1), mode="reflect"),
    "assignment": assigned,
    "assignment into zeros": blank,
}
NOT_EXPORTED = {(name, "legacy") for name in ("uneven pool", "as_strided", "as_strided, overlapping")}  # torch refuses
OUT_OF_REACH = {("assignment into zeros", "default", "fixed 3")}


@pytest.mark.slow
@pytest.mark.parametrize(("exporter", "batch"), [("default", "dynamic"), ("default", "fixed 3"), ("legacy", "dynamic")])
@pytest.mark.parametrize("name", REARRANGED)
def test_a_rearrangement_and_its_gradient(name: str, exporter: str, batch: str, tmp_path: Path) -> None:
    model = Rearranged(REARRANGED[name]).eval()
    if (name, exporter) in NOT_EXPORTED:
        return
    file = write_onnx(model, tmp_path / "m.onnx", SHAPE, exporter=exporter, batch=BATCHES[batch])
    if (name, exporter, batch) in OUT_OF_REACH:
        with pytest.raises(ModelError, match=r"\w+ \(.*\).*; (hand over|export)"):
            open_model(Source(str(file), SHAPE))
        return
    graph = with_gradient(open_model(Source(str(file), SHAPE)).graph, seed=top_class)
    given = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits = model(given)
    (wanted,) = torch.autograd.grad(logits.amax(dim=1).sum(), given)
    found, gradient = graph(given.detach())
    torch.testing.assert_close(found, logits.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


ROW = np.asarray([[0, 1], [2, 3], [2, 0]])  # coordinates of an image [3, 4, 5]


def across(*nodes: onnx.NodeProto, batch: int | str, **constants: Any) -> onnx.ModelProto:
    """A model on images [item, 3, 4, 5]."""
    return model_of(list(nodes), {name: np.asarray(value) for name, value in constants.items()}, [batch, 3, 4, 5])


def turned(kind: str, index: Any, rank: int = 4) -> Callable[[int | str], onnx.ModelProto]:
    """An operator on the image with its batch turned to the end, and turned back; what is written is of the image."""

    def model(batch: int | str) -> onnx.ModelProto:
        more = ["part"] if kind == "ScatterND" else []
        nodes = [
            helper.make_node("Transpose", ["input"], ["last"], perm=[1, 2, 3, 0]),
            helper.make_node("Slice", ["last", "starts", "ends"], ["part"]),
            helper.make_node(kind, ["last", "index", *more], ["found"]),
            helper.make_node("Transpose", ["found"], ["output"], perm=[rank - 1, *range(rank - 1)]),
        ]
        return across(*nodes, batch=batch, index=index, starts=[2, 1], ends=[3, 3])

    return model


def strided(batch: int | str) -> onnx.ModelProto:
    """A strided view of the middle of each item, as torch's exporter writes it for a fixed and for a free batch."""
    flat = helper.make_node("Reshape", ["input", "all"], ["flat"])
    pattern = np.asarray([[7, 9, 40], [59, 0, 1]])
    if isinstance(batch, int):
        index = np.arange(batch).reshape(-1, 1, 1) * 60 + pattern
        return across(
            flat, helper.make_node("Gather", ["flat", "index"], ["output"]), batch=batch, all=[-1], index=index
        )
    return across(
        flat,
        helper.make_node("Shape", ["input"], ["items"], start=0, end=1),
        helper.make_node("Squeeze", ["items"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["rows"]),
        helper.make_node("Mul", ["rows", "length"], ["starts"]),
        helper.make_node("Unsqueeze", ["starts", "axes"], ["columns"]),
        helper.make_node("Add", ["columns", "pattern"], ["index"]),
        helper.make_node("Gather", ["flat", "index"], ["output"]),
        all=[-1],
        zero=0,
        one=1,
        length=60,
        axes=[1, 2],
        pattern=pattern[None],
        batch=batch,
    )


FOUND: dict[str, Callable[[int | str], onnx.ModelProto]] = {
    "a strided view": strided,
    "GatherND": turned("GatherND", ROW, 3),
    "GatherND, in a grid": turned("GatherND", ROW.reshape(3, 1, 2)[:, [0, 0]][..., :1], 5),
    "ScatterND": turned("ScatterND", [[[0, 1], [2, 3]]]),
    "ScatterElements": lambda batch: across(
        helper.make_node("ScatterElements", ["input", "index", "written"], ["output"], axis=-1),
        batch=batch, index=np.broadcast_to([-1, 0], (batch, 3, 4, 2)),
        written=np.broadcast_to(np.arange(24, dtype=np.float32).reshape(3, 4, 2), (batch, 3, 4, 2)),
    ),
    "ScatterElements, one number": lambda batch: across(
        helper.make_node("ScatterElements", ["input", "index", "written"], ["output"], axis=-1),
        batch=batch, index=np.broadcast_to([-1, 0], (batch, 3, 4, 2)), written=np.ones((batch, 3, 4, 2), np.float32),
    ),
    "GatherElements": lambda batch: across(
        helper.make_node("Expand", ["places", "sizes"], ["index"]),
        helper.make_node("GatherElements", ["input", "index"], ["output"], axis=1),
        batch=batch, places=np.asarray([2, 0]).reshape(1, 2, 1, 1), sizes=[batch, 2, 4, 5],
    ),
}  # fmt: skip
FIXED_ONLY = {"GatherElements", "ScatterElements", "ScatterElements, one number"}


@pytest.mark.parametrize("batch", ["item", 1, 2])
@pytest.mark.parametrize("name", FOUND)
def test_places_are_those_that_onnx_runtime_reads(name: str, batch: int | str, tmp_path: Path) -> None:
    if batch == "item" and name in FIXED_ONLY:
        batch = 1
    onnx.save(FOUND[name](batch), tmp_path / "m.onnx")
    imported = import_onnx(tmp_path / "m.onnx", (3, 4, 5))
    images = np.random.default_rng(1).random((4, 3, 4, 5), np.float32)
    expected = run_file(imported, images)
    with torch.no_grad():
        found = single_path(imported.program)(torch.from_numpy(images)).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_branch_that_sizes_decide(channels: int, tmp_path: Path) -> None:
    """Only the branch that is taken runs: the other one cannot be computed."""
    names = ("squeezed", "kept")
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    branches = [
        helper.make_graph([helper.make_node("Squeeze", ["input", "axis"], ["squeezed"])], "one", [], out[:1]),
        helper.make_graph([helper.make_node("Relu", ["input"], ["kept"])], "many", [], out[1:]),
    ]
    nodes = [
        helper.make_node("Shape", ["input"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "axis"], ["channels"]),
        helper.make_node("Equal", ["channels", "axis"], ["single"]),
        helper.make_node("If", ["single"], ["found"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Sigmoid", ["found"], ["output"]),
    ]
    onnx.save(model_of(nodes, {"axis": np.asarray([1])}, ["item", "channel", 4, 5]), tmp_path / "m.onnx")
    imported = import_onnx(tmp_path / "m.onnx", (channels, 4, 5))
    images = np.random.default_rng(1).normal(0, 1, (3, channels, 4, 5)).astype(np.float32)
    with torch.no_grad():
        found = single_path(imported.program)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, run_file(imported, images), rtol=1e-5, atol=1e-6)


def test_places_within_a_row_are_proven() -> None:
    rows = np.asarray([0, 24]).reshape(2, 1, 1) + np.arange(24).reshape(1, 24, 1)
    found = places_of_items(rows, 48, 2)
    assert found is not None
    assert (found.axis, found.step, found.pattern.ravel().tolist()) == (0, 24, list(range(24)))
    turned = places_of_items(rows.transpose(1, 0, 2), 48, 2)
    assert turned is not None
    assert turned.axis == 1


@pytest.mark.parametrize(
    "places",
    [
        np.asarray([[24, 25], [0, 1]]),  # the items exchanged
        np.asarray([[0, 25], [24, 49]]),  # into the next item
        np.asarray([[0, 1], [20, 21]]),  # another distance than an item's
        np.asarray([[0, 1], [0, 1]]),  # all read the first item
    ],
    ids=str,
)
def test_places_that_mix_items_are_not(places: NDArray[Any]) -> None:
    assert places_of_items(places, 48, 2) is None


def test_rows_of_an_unknown_number() -> None:
    """The range over the items, computed with as the file does."""
    rows = row_range(7)[:, None] * 24 + np.arange(24, dtype=object)[None, :]
    found = places_of_rows(rows, 7 * 24)
    assert found is not None
    assert (found.axis, found.step, found.pattern.tolist()) == (0, 24, list(range(24)))
    assert places_of_rows(rows + 1, 7 * 24) is None
    assert places_of_rows(rows, 7 * 25) is None
    assert places_of_rows(rows * 0, 7 * 24) is None


@pytest.mark.parametrize("kind", ["Gather", "GatherND", "ScatterND"])
@pytest.mark.parametrize("order", [[1, 0], [0, 0]])
def test_a_file_that_reads_another_item_is_refused(kind: str, order: Sequence[int], tmp_path: Path) -> None:
    """With the node's name, and what to do."""
    index = np.asarray(order) if kind == "Gather" else np.asarray(order)[:, None]
    more = ["input"] if kind == "ScatterND" else []
    node = helper.make_node(kind, ["input", "index", *more], ["output"], name="mix/1")
    onnx.save(model_of([node], {"index": index}, [2, 5]), tmp_path / "m.onnx")
    words = rf"{kind} \(mix/1\): picks places across the items of a batch.*example\.contiguous\(\).*dynamo=False"
    with pytest.raises(ModelError, match=words):
        import_onnx(tmp_path / "m.onnx", (5,))


def test_what_a_scatter_combines_is_refused_by_name(tmp_path: Path) -> None:
    node = helper.make_node("ScatterND", ["input", "index", "input"], ["output"], reduction="add")
    onnx.save(model_of([node], {"index": np.zeros((1, 1), np.int64)}, ["item", 5]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="combines what it writes with what is there by 'add'"):
        import_onnx(tmp_path / "m.onnx", (5,))


@pytest.mark.parametrize("kind", ["GatherElements", "ScatterElements"])
def test_an_index_of_so_many_items_needs_a_fixed_batch(kind: str, tmp_path: Path) -> None:
    """ONNX Runtime answers for the index's one item, however many there are."""
    more = ["written"] if kind == "ScatterElements" else []
    node = helper.make_node(kind, ["input", "index", *more], ["output"], axis=1)
    constants = {"index": np.zeros((1, 1, 4, 5), np.int64), "written": np.ones((1, 1, 4, 5), np.float32)}
    onnx.save(across(node, batch="item", **constants), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"{kind} \(output\): .* as many items as its index has.*fixed batch axis"):
        import_onnx(tmp_path / "m.onnx", (3, 4, 5))
