"""Series of two channels that are waves of three forms, and two small networks for them, one of each order of axes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CHANNELS, STEPS, CLASSES = 2, 32, 3
LOW, HIGH = -2.0, 2.0
BATCH_ITEMS, LEARNING_RATE = 64, 3e-3


def waves(items: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Sines, squares and sawteeth [item, channel, time] of random pitch, phase and size in noise, and their labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, items)
    turns = draw.uniform(2.0, 4.0, (items, 1, 1)) * np.arange(STEPS) / STEPS + draw.uniform(0, 1, (items, CHANNELS, 1))
    forms = np.stack([np.sin(2 * np.pi * turns), np.sign(np.sin(2 * np.pi * turns)), 2 * (turns % 1.0) - 1])
    size = draw.uniform(0.6, 1.1, (items, CHANNELS, 1))
    series = size * forms[labels, np.arange(items)] + draw.normal(0, 0.15, (items, CHANNELS, STEPS))
    return series.clip(LOW, HIGH).astype(np.float32), labels.astype(np.int64)


def convolutions() -> nn.Module:
    """A small convolutional network that takes [item, channel, time]."""
    return nn.Sequential(
        nn.Conv1d(CHANNELS, 16, 7, padding=3),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 5, padding=2),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


class Recurrent(nn.Module):
    """A small recurrent network that takes [item, time, channel]; the mean of its states decides."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(CHANNELS, width, batch_first=True), nn.Linear(width, CLASSES)

    def forward(self, series: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(series)[0].mean(dim=1))
        return logits


NETWORKS: Mapping[str, tuple[str, Callable[[], nn.Module]]] = {
    "convolutions": ("NCT", convolutions),
    "recurrent": ("NTC", Recurrent),
}


def in_order(series: NDArray[np.float32], layout: str) -> NDArray[np.float32]:
    """Series [item, channel, time] in a model's order of axes."""
    return np.ascontiguousarray(series.transpose(0, 2, 1)) if layout == "NTC" else series


def trained(name: str, items: int, epochs: int) -> nn.Module:
    """A network of the table, trained on series of its own."""
    layout, build = NETWORKS[name]
    series, labels = waves(items, seed=100)
    x, y = torch.from_numpy(in_order(series, layout)), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        for _ in range(epochs):
            for index in torch.randperm(len(x)).split(BATCH_ITEMS):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(x[index]), y[index]).backward()
                optimiser.step()
    return model.eval().requires_grad_(requires_grad=False)


def write_model(model: nn.Module, name: str, file: Path) -> None:
    """Export a network of the table to ONNX, its number of items free."""
    example = torch.from_numpy(in_order(waves(2, seed=0)[0], NETWORKS[name][0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            model,
            (example,),
            str(file),
            dynamo=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}},
        )
