"""Norms, what is divided by them, and remainders have torch's gradient, and one of zeros is finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional

from guard.offline.model.gradient.input_gradient import with_gradient
from guard.offline.model.onnx_import.importer import import_onnx
from guard.offline.model.several_outputs import single_path
from tests.offline.model.onnx_import.test_operator_table import floats
from tests.onnx_files import model_of

IMAGE = (2, 4, 6)
DIVISORS = floats(0.3, -0.2, 0.7, 0.25, 1.5, 1)
# Of each operator: its attributes, its constants, and torch's form of it.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], Any]] = {
    "LpNormalization": ("LpNormalization", {"axis": 1}, {}, lambda x: functional.normalize(x, dim=1)),
    "of order 1": ("LpNormalization", {"axis": -1, "p": 1}, {}, lambda x: functional.normalize(x, p=1, dim=-1)),
    "LpPool": (
        "LpPool",
        {"kernel_shape": [2, 3], "strides": [2, 3]},
        {},
        lambda x: functional.avg_pool2d(x * x, (2, 3), divisor_override=1).clamp_min(1e-30).sqrt(),
    ),
    "GlobalLpPool": ("GlobalLpPool", {"p": 3}, {}, lambda x: x.abs().pow(3).sum((2, 3)).clamp_min(1e-30).pow(1 / 3)),
    "MeanVarianceNormalization": (
        "MeanVarianceNormalization",
        {"axes": [1, 2, 3]},
        {},
        lambda x: functional.layer_norm(x, IMAGE, eps=1e-12),
    ),
    "Shrink": ("Shrink", {"lambd": 0.4, "bias": 0.4}, {}, lambda x: functional.softshrink(x, 0.4)),
    "Mod": ("Mod", {"fmod": 1}, {"divisors": DIVISORS}, lambda x: torch.fmod(x, torch.from_numpy(DIVISORS))),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_torchs_and_finite(name: str, tmp_path: Path) -> None:
    kind, attributes, constants, by_torch = CASES[name]
    node = helper.make_node(kind, ["input", *constants], ["result"], **attributes)
    last = helper.make_node("Flatten", ["result"], ["output"])
    opset = 18 if kind != "Shrink" else 9
    onnx.save(model_of([node, last], constants, ["item", *IMAGE], opset=opset), tmp_path / "m.onnx")
    graph = single_path(import_onnx(tmp_path / "m.onnx", IMAGE).program)
    images = torch.randn(3, *IMAGE, generator=torch.Generator().manual_seed(0))
    if kind != "MeanVarianceNormalization":  # which divides what is left of equal numbers by next to nothing
        images[1] = 0.0
        images[2, 1] = 0.0
    direction = torch.randn(graph(images).shape, generator=torch.Generator().manual_seed(1))

    def seed(outputs: Tensor) -> Tensor:
        return direction.expand_as(outputs)

    *_, found = with_gradient(graph, seed=seed)(images)
    images.requires_grad_()
    torch.autograd.backward(by_torch(images).flatten(1), direction)
    assert images.grad is not None
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[0], images.grad[0], rtol=1e-4, atol=1e-4)
