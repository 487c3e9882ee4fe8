"""Pictures of four drawn shapes in noise, and a small network for them in the forms that a server holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.onnx_files import write_onnx
from tests.reduced_models import write_half, write_quantised

SIDE, LEVELS = 16, 255
SHAPE = (3, SIDE, SIDE)
BATCH_ITEMS, LEARNING_RATE = 64, 3e-3
CLASSES: Mapping[str, int] = {"one output": 2, "float16": 4, "int8": 4}  # by form


def shapes(items: int, seed: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Discs, squares, crosses and rings [item, 3, 16, 16] of random place, size and colour in noise, and their labels.

    Values are in unit space on a grid of 1/255. With two classes there are discs and squares.
    """
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, items)
    row, column = np.mgrid[0:SIDE, 0:SIDE]
    centre = draw.uniform(5.0, SIDE - 6.0, (items, 2, 1, 1))
    radius = draw.uniform(2.5, 4.5, (items, 1, 1))
    down, right = np.abs(row - centre[:, 0]), np.abs(column - centre[:, 1])
    far = np.hypot(down, right)
    forms = np.stack(
        [
            far <= radius,
            np.maximum(down, right) <= 0.9 * radius,
            (np.minimum(down, right) <= 0.3 * radius) & (np.maximum(down, right) <= 1.1 * radius),
            (far <= 1.1 * radius) & (far >= 0.55 * radius),
        ]
    )[labels, np.arange(items)]
    ground, paint = (draw.uniform(low, low + 0.35, (items, 3, 1, 1)) for low in (0.15, 0.45))
    images = np.where(forms[:, None], paint, ground) + draw.normal(0, 0.06, (items, *SHAPE))
    snapped = np.rint(images.clip(0, 1) * LEVELS).astype(np.float32) / np.float32(LEVELS)
    return snapped, labels.astype(np.int64)


def network(outputs: int) -> nn.Module:
    """Build a small convolutional network with so many outputs."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(192, outputs),
    )


class OneProbability(nn.Module):
    """A network of one logit that answers the probability of the second class."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.body(images))


@cache
def trained(classes: int, items: int, epochs: int) -> nn.Module:
    """A network trained on pictures of its own: one logit for two classes, otherwise one a class."""
    images, labels = shapes(items, 100, classes)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network(1 if classes == 2 else classes).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        for _ in range(epochs):
            for index in torch.randperm(len(x)).split(BATCH_ITEMS):
                optimiser.zero_grad()
                found = model(x[index])
                two = torch.cat([torch.zeros_like(found), found], dim=1) if classes == 2 else found
                nn.functional.cross_entropy(two, y[index]).backward()
                optimiser.step()
    return model.eval().requires_grad_(requires_grad=False)


def write_model(form: str, file: Path, items: int, epochs: int) -> None:
    """Write the network as ONNX file: one sigmoid, halves from input to output, or quantised with its ranges inside."""
    model = trained(CLASSES[form], items, epochs)
    if form == "one output":
        write_onnx(OneProbability(model), file, SHAPE, exporter="legacy")
    elif form == "float16":
        write_half(model, file, SHAPE)
    else:
        seen, _ = shapes(256, 101, CLASSES[form])
        write_quantised(model, file, seen, per_channel=True, reduce_range=True)  # without VNNI eight bits saturate
