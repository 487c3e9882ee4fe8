"""Vectors as they come: scikit-learn's breast-cancer measurements, 30 features, each with a range of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from torch import nn

from guard.offline.demo_model import AsTuple
from guard.offline.job.job import Job
from guard.offline.job.recipe import Recipe, load_recipe, parse
from guard.offline.model.onnx_export.export import lower
from tests.every_pass import every_pass
from tests.offline.tiny import fitted

SEEN = 150  # by the network; the rest is the guard's
MARGIN = 0.05  # of a feature's span, beyond the values met, to either side


@cache
def data() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Measurements [item, feature] and labels, shuffled once."""
    found = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(found.target))
    return found.data[order].astype(np.float32), found.target[order].astype(np.int64)


def box() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Smallest and largest value of each feature, as a domain expert would state them."""
    measured, _ = data()
    low, high = measured.min(axis=0), measured.max(axis=0)
    room = MARGIN * (high - low)
    return tuple((low - room).tolist()), tuple((high + room).tolist())


class Standardised(nn.Module):
    """A perceptron behind its own standardisation, so that it takes the measurements as they are."""

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.body = nn.Sequential(nn.Linear(len(mean), 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, measured: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body((measured - self.mean) / self.spread)
        return logits


@cache
def model() -> nn.Module:
    measured, labels = (array[:SEEN] for array in data())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Standardised(torch.from_numpy(measured.mean(axis=0)), torch.from_numpy(measured.std(axis=0)))
        return fitted(network, measured, labels, epochs=30)


def recipe() -> Recipe:
    """The preset for vectors, and whatever else images have, so that every detector meets vectors."""
    own = load_recipe("vectors").raw
    names = {entry["name"] for entry in own["detector"]}
    missing: list[Mapping[str, Any]] = [entry for entry in every_pass().raw["detector"] if entry["name"] not in names]
    return parse({**own, "detector": [*own["detector"], *missing]}, "vectors")


def job(folder: Path, **changes: Any) -> Job:
    """What `guard train` would be asked for; files are written to the folder."""
    low, high = box()
    settings: dict[str, Any] = {
        "model": str(write_model(folder / "model.pt2")),
        "data": write_data(folder / "data.npz"),
        "out": folder / "bundle",
        "recipe": recipe(),
        "reject_rate": 0.05,
        "flag_rate": 0.1,
        "low": low,
        "high": high,
        "serves": "tumours",
        "attack_items": 80,
        "adaptive_items": 10,
        "adaptive_steps": 8,
    }
    return Job(**{**settings, **changes})


def write_data(file: Path) -> Path:
    measured, labels = (array[SEEN:] for array in data())
    np.savez(file, images=measured, labels=labels)
    return file


def write_model(file: Path) -> Path:
    """For `guard train`."""
    example = torch.from_numpy(data()[0][:2])
    torch.export.save(torch.export.export(model(), (example,), dynamic_shapes=({0: torch.export.Dim("item")},)), file)
    return file


def write_served(file: Path) -> Path:
    """For a model server."""
    example = torch.from_numpy(data()[0][:2])
    proto = lower(AsTuple(model()), example, input_name="input", output_names=("logits",))
    file.write_bytes(proto.SerializeToString())
    return file
