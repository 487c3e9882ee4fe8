"""A float16 file opens as the float32 network of its weights, as strictly as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.onnx_import.importer import check_import, import_onnx
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.served import measure_difference
from guard.offline.model.several_outputs import single_path
from guard.value_box import ValueBox
from tests.offline import tiny
from tests.onnx_files import model_of, write_onnx
from tests.reduced_models import HalfInside, rounded_to_half, without_norm, write_half

BLOCKED = ["Gemm", "Relu"]
MODELS = {
    "images": (lambda: without_norm(tiny.image_model()), tiny.SHAPE, tiny.data),
    "vectors": (tiny.vector_model, (tiny.FEATURES,), tiny.vectors),
}
CONVERTED: dict[str, tuple[dict[str, Any], str]] = {
    "all of it": ({}, "FP16"),
    "but its ends": ({"keep_io_types": True}, "FP32"),
    "but some operators": ({"op_block_list": BLOCKED}, "FP16"),
    "but its ends and some operators": ({"op_block_list": BLOCKED, "keep_io_types": True}, "FP32"),
}


def agrees(file: Path, float_model: nn.Module, shape: tuple[int, ...], datatype: str, draw: Any) -> None:
    """Logits and gradients are the float network's; the served file's are near, and not the same."""
    classifier = open_model(Source(str(file), shape))
    assert classifier.spec.input.datatype == datatype
    images = draw(64, seed=3)[0]
    given = torch.from_numpy(images).requires_grad_()
    logits = float_model(given)
    (wanted,) = torch.autograd.grad(logits.amax(dim=1).sum(), given)
    found, gradient = with_gradient(classifier.graph, seed=top_class)(given.detach())
    torch.testing.assert_close(found, logits.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)
    assert classifier.served is not None
    difference = measure_difference(classifier.served, classifier, images, classifier.spec.input.box)
    assert difference.form == "computes in float16"
    assert difference.changed == 0
    assert difference.largest is not None
    assert difference.largest < 5e-3


@pytest.mark.parametrize("exporter", ["default", "legacy"])
@pytest.mark.parametrize("name", MODELS)
def test_a_network_that_casts_to_half_and_back(name: str, exporter: str, tmp_path: Path) -> None:
    make, shape, draw = MODELS[name]
    file = write_onnx(HalfInside(make()), tmp_path / "m.onnx", shape, exporter=exporter)
    agrees(file, rounded_to_half(make()), shape, "FP32", draw)


@pytest.mark.parametrize("part", CONVERTED)
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_file(name: str, part: str, tmp_path: Path) -> None:
    make, shape, draw = MODELS[name]
    settings, datatype = CONVERTED[part]
    file = write_half(make(), tmp_path / "m.onnx", shape, **settings)
    agrees(file, rounded_to_half(make(), but=nn.Linear if "op_block_list" in settings else ()), shape, datatype, draw)


def test_an_import_that_is_off_by_less_than_half_precision_rounds_is_found(tmp_path: Path) -> None:
    file = write_half(tiny.image_model(), tmp_path / "m.onnx", tiny.SHAPE, keep_io_types=True)
    imported = import_onnx(file, tiny.SHAPE)
    module, box = single_path(imported.program), ValueBox((0.0,), (1.0,), 3)
    assert check_import(imported, module, box) < 1e-5
    weights = [value for value in module.state_dict().values() if value.is_floating_point()]
    for weight in weights[:2]:
        weight.mul_(1 + 3e-4)
    with pytest.raises(ModelError, match="was imported wrongly"):
        check_import(imported, module, box)


def test_weights_that_are_only_kept_in_half_precision_are_no_difference(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["short"], ["matrix"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["input", "matrix"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("MatMul", ["positive", "matrix"], ["output"]),
    ]
    onnx.save(model_of(nodes, {"short": np.eye(4, dtype=np.float16) * 3}, ["item", 4]), tmp_path / "m.onnx")
    assert open_model(Source(str(tmp_path / "m.onnx"), (4,))).served is None


def test_nodes_that_a_converter_appended_are_put_in_order(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["positive", "matrix"], ["output"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("MatMul", ["input", "matrix"], ["hidden"]),
    ]
    onnx.save(model_of(nodes, {"matrix": np.eye(4, dtype=np.float32) * 3}, ["item", 4]), tmp_path / "m.onnx")
    given = torch.rand(3, 4)
    torch.testing.assert_close(open_model(Source(str(tmp_path / "m.onnx"), (4,)))(given), given * 9)
