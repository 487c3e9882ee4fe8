"""Training loop of the guard's own small networks.

Rule 1: the caller owns the randomness: the order of the items is drawn from a generator, or, where none is given, from
the global one, which the caller has seeded and restores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR


@dataclass(frozen=True)
class Schedule:
    """Training schedule of a network: AdamW, its learning rate falling to zero along half a cosine."""

    epochs: int
    batch_items: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    falls: Literal["each step", "each epoch"] = "each step"


def train(
    network: nn.Module,
    items: int,
    loss: Callable[[Tensor], Tensor],
    schedule: Schedule,
    generator: torch.Generator | None = None,
) -> None:
    """Minimise the mean loss of `items` items; `loss` receives the indices of a batch [item]."""
    settings = schedule
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    by_step, steps = settings.falls == "each step", settings.epochs * -(-items // settings.batch_items)
    falling = (
        LambdaLR(optimiser, lambda done: (1 + math.cos(math.pi * done / steps)) / 2)
        if by_step
        else CosineAnnealingLR(optimiser, settings.epochs)
    )
    device = next(network.parameters()).device
    with torch.enable_grad():
        for _ in range(settings.epochs):
            order = torch.randperm(items, generator=generator, device=generator.device if generator else None)
            for index in order.to(device).split(settings.batch_items):
                optimiser.zero_grad()
                loss(index).backward()
                optimiser.step()
                if by_step:
                    falling.step()
            if not by_step:
                falling.step()
    optimiser.zero_grad()
