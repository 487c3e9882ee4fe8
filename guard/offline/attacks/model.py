"""Model as an attack meets it: its answers, the gradient of an objective, and the torch module behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from guard.errors import ConfigError

Objective: TypeAlias = Callable[[Tensor], Tensor]  # logits [item, class] -> what is to grow, [item]


class Model(Protocol):
    """Protected model, whatever computes it.

    Torch's autograd can differentiate a call once; an attack that wants a gradient's own gradient asks for `module`.
    """

    @property
    def engine(self) -> str:
        """Name of what computes the logits, to the last bit."""
        ...

    @property
    def module(self) -> nn.Module:
        """Torch module with the model's layers. Raises ConfigError where there is none."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return logits [item, class] of unit-space inputs [item, ...]."""
        ...

    def value_and_gradient(self, points: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [item, class], `objective(logits)` [item] and its gradient to the points [item, ...]."""
        ...


@dataclass(frozen=True, eq=False)
class TorchModel:
    """Model that torch computes: a module, or any function of tensors that autograd can differentiate."""

    forward: Callable[[Tensor], Tensor]

    @property
    def engine(self) -> str:
        return "torch"

    @property
    def module(self) -> nn.Module:
        if not isinstance(self.forward, nn.Module):  # as the caller gave it
            raise ConfigError(f"the model is {self.forward!r}, a function without layers; give a torch module instead")
        return self.forward

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.forward(images)

    def value_and_gradient(self, points: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            watched = points.detach().requires_grad_()
            logits = self.forward(watched)
            values = objective(logits)
            (gradient,) = torch.autograd.grad(values.sum(), watched)
        return logits.detach(), values.detach(), gradient.detach()
