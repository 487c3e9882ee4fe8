"""Categories inside a model: embeddings and one-hot rows of codes, from both exporters; the rest keeps its gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.open_model import Source, open_model
from tests.onnx_files import EXPORTERS, model_of, write_onnx

NUMBERS, CODES = 3, 6


class Coded(nn.Module):
    """Network on three numbers and a code from 0 to 5, looked up or written as a row of 0 and 1."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.table = nn.Embedding(CODES, CODES)
        self.register_buffer("codes", torch.arange(float(CODES)))
        self.codes: Tensor
        self.layers = nn.Sequential(nn.Linear(NUMBERS + CODES, 12), nn.Tanh(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        code = x[:, NUMBERS]
        if self.way == "embedding":
            row = self.table(code.long())
        elif self.way == "one_hot":
            row = nn.functional.one_hot(code.long(), CODES).float()
        else:
            row = (code[:, None] == self.codes).float()
        found: Tensor = self.layers(torch.cat([x[:, :NUMBERS], row], dim=1))
        return found


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("way", ["embedding", "one_hot", "equal"])
def test_a_code_is_looked_up_and_the_numbers_keep_their_gradient(way: str, exporter: str, tmp_path: Path) -> None:
    model = Coded(way).eval()
    file = write_onnx(model, tmp_path / "m.onnx", (NUMBERS + 1,), exporter=exporter)
    high = (1.0, 1.0, 1.0, CODES - 1.0)
    classifier = open_model(Source(str(file), (NUMBERS + 1,), low=(0.0,) * 4, high=high))
    for items in (1, CODES):
        unit = torch.rand(items, NUMBERS + 1, generator=torch.Generator().manual_seed(1))
        unit[:, NUMBERS] = torch.arange(items) / (CODES - 1)
        given = unit.clone().requires_grad_()
        logits = model(given * torch.tensor(high))
        (wanted,) = torch.autograd.grad(logits.amax(dim=1).sum(), given)
        found, gradient = with_gradient(classifier.graph, seed=top_class)(unit)
        torch.testing.assert_close(found, logits.detach())
        torch.testing.assert_close(gradient, wanted)
        assert (gradient[:, NUMBERS] == 0).all()


def test_a_model_of_codes_alone_has_no_gradient() -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(x[:, 0].long(), 3).float()

    program = torch.export.export(Alone(), (torch.zeros(2, 1),), dynamic_shapes=({0: torch.export.Dim("item")},))
    with pytest.raises(ModelError, match="does not depend on the input through anything differentiable"):
        with_gradient(program.module(), seed=top_class)


def test_places_of_a_tables_rows_by_the_inputs_numbers_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["input"], ["codes"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "codes"], ["output"], name="the/node", axis=1),
    ]
    table = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    onnx.save(model_of(nodes, {"table": table}, ["item", 2]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"Gather \(the/node\).*axis 1 .*torch\.nn\.Embedding"):
        open_model(Source(str(tmp_path / "m.onnx"), (2,)))
