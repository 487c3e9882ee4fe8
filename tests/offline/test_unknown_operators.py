"""A network of torch whose operators have no adjoint is trained on, cut at its layers and read like any other."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from guard.offline.job.recipe import parse
from guard.offline.train import train
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from tests.offline import tiny

RECIPE: dict[str, Any] = {
    **tiny.BRIEF,
    "description": "A layer to cut at, a gradient, a repair; no more than a network's operators are asked for.",
    "detector": [one for one in tiny.BRIEF["detector"] if one["name"] in ("mahalanobis", "saliency_classifier")],
}


class Shifting(nn.Module):
    """Parts of the channels move by one place, as temporal shifts write it."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, :4, :, :-1] = x[:, :4, :, 1:]
        out[:, 4:] = functional.mish(x[:, 4:]).roll(1, 2)
        return out


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(8),
        Shifting(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, tiny.CLASSES),
    )


def write_model(file: Path) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny.fitted(network(), *tiny.data(600, seed=100), epochs=12)
    item = torch.export.Dim("item")
    torch.export.save(torch.export.export(model, (torch.zeros(2, *tiny.SHAPE),), dynamic_shapes=({0: item},)), file)
    return model


def test_it_is_trained_on_and_read(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.pt2")
    job = tiny.job(tmp_path, recipe=parse(RECIPE, "tiny"), adaptive_items=4, adaptive_steps=2)
    runtime = Runtime.open(train(job, Stages(Console(file=io.StringIO()))), threads=1)
    runtime.self_check()
    items = tiny.data(64, seed=5)[0]
    result = runtime.read(items)
    np.testing.assert_array_equal(result.prediction, model(torch.from_numpy(items)).argmax(1).numpy())
    assert result.p_value.min() > 0.0
    assert (result.p_value < 0.05).mean() < 0.25
