"""Shared perturbation: one thing for all items (a universal perturbation, a patch, a frame), climbed by mean gradients.

Rule 1: the model is asked through `value_and_gradient` alone, so a compiled one serves as well as torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import per_item
from guard.offline.attacks.objective import LogOdds

MOMENTUM_SHARE = 0.9
MAX_LOG_ODDS = 9.0  # log-odds from which on an item adds no gradient: it is fooled, and others need the budget
LAST_STEP_SHARE = 0.1  # of the first step: how small the last one is

Place = Callable[[Tensor, Tensor], Tensor]  # (what is shared, unit-space items [item, ...]) -> attacked items
Step = Callable[[Tensor, Tensor, float], Tensor]  # (what is shared, direction, step length to 1) -> moved


@dataclass(frozen=True)
class Pace:
    """Length of the ascent, in epochs and items per batch."""

    epochs: int
    batch: int


def climb_shared(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    start: Tensor,
    place: Place,
    step: Step,
    *,
    pace: Pace,
    target: int | None,
    generator: torch.Generator,
) -> Tensor:
    """Move what is shared so that it fools the model on as many items as it can.

    Costs a forward and a backward per item and epoch.

    Source: Shafahi et al. 2020, arXiv:1811.11304, algorithm 1: stochastic gradients of a loss that is clipped from
    above. Ours climbs log-odds, whose gradient does not fade, and adds the momentum of Dong et al. 2018.
    """
    shared, momentum = start, torch.zeros_like(start)
    batches = pace.epochs * -(-len(inputs) // pace.batch)
    done = 0
    for _ in range(pace.epochs):
        order = torch.randperm(len(inputs), generator=generator, device=generator.device).to(inputs.device)
        for index in order.split(pace.batch):
            gradient = pulled(model, inputs[index], labels[index], shared, place, target)
            momentum = MOMENTUM_SHARE * momentum + gradient / gradient.abs().mean().clamp_min(1e-30)
            shared = step(shared, momentum, 1 - (1 - LAST_STEP_SHARE) * done / max(batches - 1, 1))
            done += 1
    return shared


def pulled(model: Model, inputs: Tensor, labels: Tensor, shared: Tensor, place: Place, target: int | None) -> Tensor:
    """Return the gradient of the items' clipped log-odds to what they share."""
    targets = None if target is None else torch.full_like(labels, target)
    with torch.enable_grad():
        watched = shared.detach().requires_grad_()
        points = place(watched, inputs)
        _, values, gradient = model.value_and_gradient(points.detach(), LogOdds(labels, targets))
        gradient = torch.where(per_item(values < MAX_LOG_ODDS, gradient), gradient, torch.zeros_like(gradient))
        (found,) = torch.autograd.grad(points, watched, gradient)
    return found.detach()


def class_number(attack: object, name: str = "target", *, of: str = "class") -> None:
    """Check that a setting is None or the number of a class, or of what `of` says. Raises ConfigError."""
    value = getattr(attack, name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ConfigError(f"attack {getattr(attack, 'name', attack)!r}: {name} = {value!r}; wanted a {of} number")
