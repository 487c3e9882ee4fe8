"""Model as an attack on a table meets it: asked about what the features may be, and blind to what may not change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guard.offline.attacks.model import Model, Objective
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import Grid


@dataclass(frozen=True, eq=False)
class FeatureModel:
    """Model that is asked about the nearest allowed items, so that an attack sees what rounding makes of its points.

    The gradient there is taken for that of the point itself (straight-through); immutable features have none.
    """

    model: Model
    grid: FeatureGrid

    @property
    def engine(self) -> str:
        return self.model.engine

    @property
    def module(self) -> nn.Module:
        return self.model.module

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.model(self.grid.straight_through(images))

    def value_and_gradient(self, points: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            allowed = self.grid.straight_through(points)
        logits, values, gradient = self.model.value_and_gradient(allowed, objective)
        return logits, values, gradient * torch.from_numpy(self.grid.mutable).to(gradient.device, gradient.dtype)


def as_allowed(model: Model, grid: Grid) -> Model:
    """Return a model as attacks may ask it: of a table, about what its features may be."""
    return FeatureModel(model, grid) if isinstance(grid, FeatureGrid) else model
