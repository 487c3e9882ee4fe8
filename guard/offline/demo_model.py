"""The demo's model: a small convolutional network on scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

GREY_STEPS = 16  # grey levels run from 0 to 16
TRAINING_ITEMS = 700  # of 1,797 images; the guard gets the rest
TRAINING_EPOCHS = 40


@dataclass(frozen=True)
class Digits:
    """Images in unit space [item, 1, 8, 8], on a grid of sixteenths, and labels; the model learns from `seen`."""

    seen: NDArray[np.float32]
    seen_labels: NDArray[np.int64]
    unseen: NDArray[np.float32]
    unseen_labels: NDArray[np.int64]


def load_digits(seed: int) -> Digits:
    """Load scikit-learn's copy of the UCI test set of handwritten digits, shuffled and parted."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    unit = (images[order] / GREY_STEPS).astype(np.float32).reshape(-1, 1, 8, 8)
    classes = labels[order].astype(np.int64)
    return Digits(unit[:TRAINING_ITEMS], classes[:TRAINING_ITEMS], unit[TRAINING_ITEMS:], classes[TRAINING_ITEMS:])


def network() -> nn.Sequential:
    """Build a network of three convolutions, two pools and two linear layers, with 32 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 48, 3, padding=1),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(192, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train_network(digits: Digits, seed: int, progress: Callable[[int, int], None]) -> nn.Module:
    """Train the network with AdamW on randomly shifted images, in a few seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network().train()
        images, labels = torch.from_numpy(digits.seen), torch.from_numpy(digits.seen_labels)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, TRAINING_EPOCHS)
        for epoch in range(TRAINING_EPOCHS):
            for index in torch.randperm(len(images)).split(64):
                loss = nn.functional.cross_entropy(model(shifted(images[index])), labels[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            schedule.step()
            progress(epoch + 1, TRAINING_EPOCHS)
    return model.eval().requires_grad_(False)


def shifted(images: Tensor) -> Tensor:
    """Return the batch moved by up to one pixel in each direction, zeros moving in."""
    down, right = (int(d) for d in torch.randint(-1, 2, (2,)))
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Return the share of the unseen images that the model has right."""
    with torch.no_grad():
        predicted = model(torch.from_numpy(digits.unseen)).argmax(dim=1).numpy()
    return float((predicted == digits.unseen_labels).mean())


def save_model(model: nn.Module, folder: Path) -> tuple[Path, Path]:
    """Save the model as `model.pt2` (for `guard train`) and as `model.onnx` (for the model server)."""
    from guard.offline.model.onnx_export.export import lower

    example = torch.zeros(2, 1, 8, 8)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("item")},))
    exported, plain = folder / "model.pt2", folder / "model.onnx"
    torch.export.save(program, exported)
    plain.write_bytes(lower(AsTuple(model), example, input_name="input", output_names=("logits",)).SerializeToString())
    return exported, plain


class AsTuple(nn.Module):
    """A model whose one output is written as a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.model(images),)
