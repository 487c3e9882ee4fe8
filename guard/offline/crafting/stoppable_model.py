"""Wrapper of a model that can be told to stop before its next pass."""

from __future__ import annotations

from torch import Tensor, nn

from guard.offline.attacks.model import Model, Objective
from guard.offline.work.tasks import Watch


class StoppableModel:
    """Model that looks up before each pass whether to end, so that an attack of minutes ends within one pass."""

    def __init__(self, model: Model, stop: Watch) -> None:
        self.model = model
        self.stop = stop

    def __call__(self, images: Tensor, /) -> Tensor:
        self.stop.look()
        return self.model(images)

    @property
    def engine(self) -> str:
        return self.model.engine

    @property
    def module(self) -> nn.Module:
        """Torch module of the model; an attack that wants it asks for it before each pass."""
        self.stop.look()
        return self.model.module

    def value_and_gradient(self, points: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        self.stop.look()
        return self.model.value_and_gradient(points, objective)
