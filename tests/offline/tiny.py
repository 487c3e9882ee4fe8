"""A problem small enough to train, attack and guard within a test: faint patterns in 8 x 8 images of 17 grey levels."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from guard.offline.evidence.kinds.second import SecondNetwork
from guard.offline.job.job import Job
from guard.offline.job.recipe import Recipe, parse
from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import Source, open_model
from guard.offline.networks.residual import Design

SHAPE = (1, 8, 8)
CLASSES, GRID, FEATURES = 3, 16, 12
CHANNELS, STEPS = 2, 24

RECIPE: dict[str, Any] = {
    "description": "Two programs, every kind of pass, as few attacks as show both a seen and a left-out family.",
    "cascade": True,
    "detector": [
        {"name": "mahalanobis", "program": "screen"},
        {"name": "kernel_density", "program": "screen"},
        {"name": "saliency_classifier", "program": "interpret", "epochs": 4, "width": 8},
        {
            "name": "feature_squeezing",
            "program": "interpret",
            "squeezers": [{"name": "bit_depth", "bits": 2}, {"name": "median", "window": 2}],
        },
    ],
    "attack": [{"name": "pgd", "budget": 0.25, "steps": 8}, {"name": "fgsm", "budget": 0.25}],
    "left_out": [{"name": "pgd", "budget": 1.5, "norm": "l2", "steps": 8}],
    "repair": [{"name": "median"}],
    "adaptive": {"budgets": [0.25]},
}

BRIEF: dict[str, Any] = {
    **RECIPE,
    "description": "One program, every kind of pass, one attack: for what depends on the model alone.",
    "cascade": False,
    "detector": [one for one in RECIPE["detector"] if one["name"] != "kernel_density"],
    "attack": RECIPE["attack"][:1],
    "left_out": [],
}
PLAIN: dict[str, Any] = {
    **BRIEF,
    "description": "One program that asks for no gradient, no row and no repair: for what depends on the data alone.",
    "detector": RECIPE["detector"][:1],
    "repair": [],
}


def data(items: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit-space images [item, 1, 8, 8] on the grid, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, items)
    row, column = np.mgrid[0:8, 0:8] / 7
    patterns = np.stack([row, column, np.abs(row - column)])
    images = 0.3 + 0.35 * patterns[labels] + generator.normal(0, 0.09, (items, 8, 8))
    snapped = np.rint(images.clip(0, 1) * GRID).astype(np.float32) / np.float32(GRID)
    return snapped[:, None], labels.astype(np.int64)


def vectors(items: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit-space vectors [item, feature] on the grid, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, items)
    centres = np.random.default_rng(99).uniform(0.3, 0.7, (CLASSES, FEATURES))
    values = (centres[labels] + generator.normal(0, 0.08, (items, FEATURES))).clip(0, 1)
    return np.rint(values * GRID).astype(np.float32) / np.float32(GRID), labels.astype(np.int64)


def series(items: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit-space series [item, channel, time] on the grid, and labels: one, two or three waves, the second delayed."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, items)
    phase = generator.uniform(0, 2 * np.pi, (items, 1)) + np.array([[0.0, 1.0]])
    waves = np.sin(phase[:, :, None] + 2 * np.pi * (labels[:, None, None] + 1) * np.arange(STEPS) / STEPS)
    values = (0.5 + 0.2 * waves + generator.normal(0, 0.06, waves.shape)).clip(0, 1)
    return np.rint(values * GRID).astype(np.float32) / np.float32(GRID), labels.astype(np.int64)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(CHANNELS, 12, 5, padding=2),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def fitted(model: nn.Module, images: NDArray[np.float32], labels: NDArray[np.int64], epochs: int) -> nn.Module:
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimiser.step()
    return model.eval().requires_grad_(False)


@cache
def image_model() -> nn.Module:
    """Trained on 600 images; right on nearly all others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fitted(network(), *data(600, seed=100), epochs=12)


@cache
def vector_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fitted(perceptron(), *vectors(600, seed=100), epochs=12)


@cache
def series_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fitted(convolutions(), *series(600, seed=100), epochs=12)


@cache
def series_classifier() -> Classifier:
    return open_model(Source(f"{__name__}:series_model", (CHANNELS, STEPS), grid=GRID))


@cache
def image_classifier() -> Classifier:
    return open_model(Source(f"{__name__}:image_model", SHAPE, grid=GRID))


@cache
def vector_classifier() -> Classifier:
    return open_model(Source(f"{__name__}:vector_model", (FEATURES,), grid=GRID))


@cache
def second_network(kind: str) -> SecondNetwork:
    """A small network of its own weights for the images, series or vectors, right on most of them."""
    shape, items, width = {
        "images": (SHAPE, data, 4),
        "series": ((CHANNELS, STEPS), series, 4),
        "vectors": ((FEATURES,), vectors, 12),
    }[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = fitted(Design(shape, CLASSES, width).build(normed=False), *items(400, seed=101), epochs=4)
    return SecondNetwork("small", f"{kind} {width}", 0.25, network)


def recipe() -> Recipe:
    """Of the guard that most tests share: with a repair that is a network, and learns with the guard."""
    return parse({**RECIPE, "repair": [*RECIPE["repair"], {"name": "guided_unet", "epochs": 1}]}, "tiny")


def brief() -> Recipe:
    return parse(BRIEF, "brief")


def plain() -> Recipe:
    return parse(PLAIN, "plain")


def write_data(file: Path, items: int = 640, seed: int = 7) -> Path:
    images, labels = data(items, seed)
    np.savez(file, images=images, labels=labels)
    return file


@cache
def exported_model() -> bytes:
    """The image model as `torch.export` writes it, which takes a third of a second."""
    example, written = torch.zeros(2, *SHAPE), io.BytesIO()
    torch.export.save(
        torch.export.export(image_model(), (example,), dynamic_shapes=({0: torch.export.Dim("item")},)), written
    )
    return written.getvalue()


def write_model(file: Path) -> Path:
    file.write_bytes(exported_model())
    return file


def job(folder: Path, **changes: Any) -> Job:
    """What `guard train` would be asked for; model and data are written where they are missing."""
    model, examples = folder / "model.pt2", folder / "data.npz"
    if not model.exists():
        write_model(model)
    if not examples.exists():
        write_data(examples)
    settings: dict[str, Any] = {
        "model": str(model),
        "data": examples,
        "out": folder / "bundle",
        "recipe": recipe(),
        "reject_rate": 0.05,
        "flag_rate": 0.1,
        "adaptive_items": 8,
        "adaptive_steps": 5,
    }
    return Job(**{**settings, **changes})
