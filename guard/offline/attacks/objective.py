"""Objectives that gradient attacks climb: log-odds of a wrong answer, or the gap between two logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot


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
