"""Linear models, whose smallest fooling perturbation is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guard.offline.attacks.model import TorchModel

FEATURES = 12


def linear(classes: int, *, seed: int = 0, scale: float = 1.0) -> tuple[TorchModel, Tensor, Tensor]:
    """A model, 24 inputs near the middle of the unit box, and the model's own labels for them."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(FEATURES, classes)
    with torch.no_grad():
        model.weight.copy_(torch.randn(model.weight.shape, generator=generator) * scale)
        model.bias.copy_(-model.weight.sum(dim=1) / 2)  # all classes tie in the middle of the box
    model.eval().requires_grad_(False)
    inputs = 0.5 + 0.1 * torch.randn(24, FEATURES, generator=generator).clamp(-2, 2)
    return TorchModel(model), inputs, model(inputs).argmax(dim=1)


def optimum(model: TorchModel, inputs: Tensor, labels: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Distance [item] to the nearest boundary in `norm`, and the class beyond it; the box is assumed not to bind."""
    logits, weight = model(inputs), model.module.weight
    behind = logits.gather(1, labels[:, None]) - logits  # [item, class]
    normals = weight[labels][:, None] - weight[None]  # [item, class, feature]
    dual = torch.linalg.vector_norm(normals, ord={"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=2)
    distances = (behind / dual.clamp_min(1e-12)).scatter(1, labels[:, None], torch.inf)
    nearest = distances.min(dim=1)
    return nearest.values, nearest.indices
