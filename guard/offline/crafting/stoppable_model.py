"""Wrapper of a model that can be told to stop before its next pass."""

from __future__ import annotations

from torch import Tensor, nn

from guard.offline.attacks.attack import Model
from guard.offline.attacks.objective import Objective, value_and_gradient
from guard.offline.work.parallel import Stop


class StoppableModel:
    """Model that checks `Stop` before each pass, so that an attack of minutes ends within one pass."""

    def __init__(self, model: Model, stop: Stop) -> None:
        self.model = model
        self.stop = stop

    def __call__(self, images: Tensor, /) -> Tensor:
        self.stop.look()
        return self.model(images)

    @property
    def module(self) -> nn.Module | None:
        """Torch module of the model, for attacks that look at layers: they ask for it before each pass."""
        self.stop.look()
        return self.model if isinstance(self.model, nn.Module) else getattr(self.model, "module", None)

    def value_and_gradient(self, points: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        self.stop.look()
        return value_and_gradient(self.model, points, objective)
