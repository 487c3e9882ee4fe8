"""The small trained networks, items to learn from and others to be attacked."""

from __future__ import annotations

import torch
from torch import Tensor

from guard.offline.attacks.attack import Attack, LearningAttack
from guard.offline.attacks.informed import Informed
from guard.offline.attacks.model import TorchModel
from tests.offline import tiny

Problem = tuple[TorchModel, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def problem(kind: str = "images") -> Problem:
    """The model, and items and labels that it has right: to learn from, and held out."""
    model, make = (tiny.image_model(), tiny.data) if kind == "images" else (tiny.vector_model(), tiny.vectors)
    parts = []
    for seed in (71, 72):
        inputs, labels = (torch.from_numpy(array) for array in make(160, seed=seed))
        with torch.no_grad():
            right = model(inputs).argmax(dim=1) == labels
        parts.append((inputs[right], labels[right]))
    return TorchModel(model), parts[0], parts[1]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learned(attack: LearningAttack, problem: Problem, seed: int = 0) -> Attack:
    model, (inputs, labels), _ = problem
    return Informed(attack, attack.learn(model, inputs, labels, seeded(seed)))
