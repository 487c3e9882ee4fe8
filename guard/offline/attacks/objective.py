"""Objectives that gradient attacks climb: log-odds of a wrong answer, or the gap between two logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from guard.offline.attacks.attack import Model

Objective: TypeAlias = Callable[[Tensor], Tensor]  # logits [item, class] -> what is to grow, [item]


@runtime_checkable
class Climbing(Protocol):
    """Model that computes the gradient of an objective itself, as a compiled one does."""

    def __call__(self, images: Tensor, /) -> Tensor: ...

    def value_and_gradient(self, points: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the function of this name returns."""
        ...


def without(logits: Tensor, classes: Tensor) -> Tensor:
    """Return logits [item, class] with one class of each item excluded, at minus infinity."""
    return logits.masked_fill(one_hot(classes, logits.shape[1]).bool(), -torch.inf)


def chosen(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the logit of one class of each item, [item]."""
    return logits.gather(1, classes[:, None])[:, 0]


def log_odds(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return log-odds of any class but the label, or of the target, [item]; larger is a better attack.

    Cross-entropy is softplus of this, so both rise in the same direction; but cross-entropy's gradient rounds to zero
    on a confident model, and an attack that stands still for that reason says nothing about the model.
    """
    if targets is None:
        return without(logits, labels).logsumexp(dim=1) - chosen(logits, labels)
    return chosen(logits, targets) - without(logits, targets).logsumexp(dim=1)


def gap(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the lead in logits of the best wrong class, or the target, [item]; above zero the attack has succeeded."""
    if targets is None:
        return without(logits, labels).amax(dim=1) - chosen(logits, labels)
    return chosen(logits, targets) - without(logits, targets).amax(dim=1)


@dataclass(frozen=True, eq=False)
class LogOdds:
    """Objective `log_odds` as a value, so that a compiled model recognises it."""

    labels: Tensor
    targets: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        return log_odds(logits, self.labels, self.targets)


@dataclass(frozen=True, eq=False)
class Gap:
    """Objective `gap` as a value, so that a compiled model recognises it."""

    labels: Tensor
    targets: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        return gap(logits, self.labels, self.targets)


def value_and_gradient(model: Model, points: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [item, class], `objective(logits)` [item] and its gradient to the points; parameters get none."""
    if isinstance(model, Climbing):
        return model.value_and_gradient(points, objective)
    with torch.enable_grad():
        watched = points.detach().requires_grad_()
        logits = model(watched)
        values = objective(logits)
        (gradient,) = torch.autograd.grad(values.sum(), watched)
    return logits.detach(), values.detach(), gradient.detach()
