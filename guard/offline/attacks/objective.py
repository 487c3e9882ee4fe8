"""What gradient attacks climb: log-odds of a wrong answer, or the gap between two logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from guard.offline.attacks.attack import Model


def without(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits [item, class] with one class of each item out of the running."""
    return logits.masked_fill(one_hot(classes, logits.shape[1]).bool(), -torch.inf)


def chosen(logits: Tensor, classes: Tensor) -> Tensor:
    """The logit of one class of each item, [item]."""
    return logits.gather(1, classes[:, None])[:, 0]


def log_odds(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Log-odds of any class but the label, or of the target, [item]; larger is a better attack.

    Cross-entropy is softplus of this, so both rise in the same direction; but cross-entropy's gradient rounds to zero
    on a confident model, and an attack that stands still for that reason says nothing about the model.
    """
    if targets is None:
        return without(logits, labels).logsumexp(dim=1) - chosen(logits, labels)
    return chosen(logits, targets) - without(logits, targets).logsumexp(dim=1)


def gap(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """How far the best wrong class, or the target, is ahead in logits, [item]; above zero the attack has succeeded."""
    if targets is None:
        return without(logits, labels).amax(dim=1) - chosen(logits, labels)
    return chosen(logits, targets) - without(logits, targets).amax(dim=1)


def value_and_gradient(
    model: Model, points: Tensor, value: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [item, class], `value(logits)` [item] and its gradient to the points; nothing reaches the parameters."""
    with torch.enable_grad():
        watched = points.detach().requires_grad_()
        logits = model(watched)
        values = value(logits)
        (gradient,) = torch.autograd.grad(values.sum(), watched)
    return logits.detach(), values.detach(), gradient.detach()
