"""A small network trained on scikit-learn's digits, and digits that neither it nor an attack has learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from guard.offline.attacks.model import Model, TorchModel
from guard.offline.attacks.noise import shuffled
from guard.offline.demo_model import load_digits, train_network

HELD_OUT = 60


@dataclass(frozen=True, eq=False)
class Trained:
    model: TorchModel
    inputs: Tensor  # [item, 1, 8, 8], answered correctly
    labels: Tensor
    seen: Tensor  # for attacks that learn first; none is among the inputs
    seen_labels: Tensor


@cache
def trained() -> Trained:
    """About four seconds, once."""
    digits = load_digits(seed=0)
    model = train_network(digits, seed=0, progress=lambda done, total: None)
    images, labels = torch.from_numpy(digits.unseen), torch.from_numpy(digits.unseen_labels)
    right = (model(images).argmax(dim=1) == labels).nonzero()[:, 0]
    kept, rest = right[:HELD_OUT], torch.arange(2 * HELD_OUT, len(images))
    return Trained(TorchModel(model), images[kept], labels[kept], images[rest], labels[rest])


def fooled(model: Model, points: Tensor, labels: Tensor) -> float:
    """The share of items not answered as labelled."""
    with torch.no_grad():
        return float((model(points).argmax(dim=1) != labels).float().mean())


def fooled_by_noise(model: Model, inputs: Tensor, attacked: Tensor, labels: Tensor) -> float:
    """The share that falls to the same perturbations, their entries in random places and with random signs."""
    return fooled(model, shuffled(inputs, attacked, torch.Generator().manual_seed(9)), labels)
