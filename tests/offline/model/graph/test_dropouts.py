"""Dropout is left out of a graph, and known from it: from torch and from an ONNX file, through folding and views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from guard.offline.model.graph.batch_norm import fold_batch_norm
from guard.offline.model.graph.canonical import plain
from guard.offline.model.graph.dropouts import Dropout, dropouts
from guard.offline.model.open_model import Source, open_model

SHAPE = (2, 6, 6)


def exported(*layers: nn.Module) -> fx.GraphModule:
    program = torch.export.export(
        nn.Sequential(*layers).eval(), (torch.zeros(2, *SHAPE),), dynamic_shapes=({0: torch.export.Dim("item")},)
    )
    graph = program.module()
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            graph.graph.erase_node(node)
    assert isinstance(graph, fx.GraphModule)
    return graph


def test_a_dropout_is_noted_at_what_it_dropped_and_stays_noted() -> None:
    graph = exported(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Dropout2d(0.25), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))
    once = plain(graph)
    assert list(dropouts(once.graph).values()) == [Dropout(0.25, channels=True), Dropout(0.5)]
    assert not any("dropout" in str(node.target) for node in once.graph.nodes)
    assert dropouts(plain(once).graph) == dropouts(once.graph)


def test_one_that_drops_nothing_or_all_is_none() -> None:
    assert dropouts(plain(exported(nn.Conv2d(2, 4, 3), nn.Dropout(0.0), nn.Dropout(1.0))).graph) == {}


def test_one_before_a_normalisation_that_is_folded_goes_with_it() -> None:
    before = exported(nn.Conv2d(2, 4, 3), nn.Dropout(0.3), nn.BatchNorm2d(4), nn.ReLU())
    behind = exported(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.ReLU())
    assert dropouts(fold_batch_norm(before).graph) == {}
    assert list(dropouts(fold_batch_norm(behind).graph).values()) == [Dropout(0.3)]


@pytest.mark.parametrize("opset", [11, 13])
def test_an_onnx_file_tells_of_its_dropout(tmp_path: Path, opset: int) -> None:
    generator = np.random.default_rng(0)
    fixed = {"a": generator.normal(size=(5, 8)), "b": generator.normal(size=(8, 3)), "share": np.array(0.35)}
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in fixed.items()]
    dropped = (
        helper.make_node("Dropout", ["bent"], ["dropped"], ratio=0.35)
        if opset < 12
        else helper.make_node("Dropout", ["bent", "share"], ["dropped"])
    )
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["bent"]),
        dropped,
        helper.make_node("MatMul", ["dropped", "b"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["item", size])
        for name, size in (("x", 5), ("logits", 3))
    ]
    used = [one for one in tensors if one.name != "share" or opset >= 12]
    graph = helper.make_graph(nodes, "dropped", ends[:1], ends[1:], used)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.save(model, tmp_path / "model.onnx")
    classifier = open_model(Source(str(tmp_path / "model.onnx"), (5,)))
    ((node, found),) = classifier.dropouts.items()
    assert found.share == pytest.approx(0.35)
    assert node == classifier.taps[-1].node


def test_what_is_kept_has_the_mean_of_what_there_was() -> None:
    generator = torch.Generator().manual_seed(0)
    kept: Tensor = Dropout(0.4).kept(400, (3, 5, 5), generator)
    assert kept.shape == (400, 1, 3, 5, 5)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)
    assert Dropout(0.4, channels=True).kept(7, (3, 5, 5), generator).shape == (7, 1, 3, 1, 1)
