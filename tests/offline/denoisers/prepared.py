"""Denoisers of the table, ready to clean items of a shape: those that are networks have learned a little."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.learned import DenoiserLessons, Learned
from guard.offline.denoisers.table import DENOISERS

ITEMS, CLASSES = 40, 3


def lessons(shape: tuple[int, ...]) -> DenoiserLessons:
    """Items [item, *shape] of three brightnesses, what noise made of them, and a linear model."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ITEMS) % CLASSES
    clean = torch.rand((ITEMS, *shape), generator=generator) / 2 + labels.reshape(-1, *[1] * len(shape)) / 6
    attacked = (clean + 0.2 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    matrix = torch.randn((clean[0].numel(), CLASSES), generator=generator)

    def model(items: Tensor) -> Tensor:
        return items.flatten(1) @ matrix

    return DenoiserLessons(clean, labels, attacked, clean, model, seed=0)


@cache
def prepared(name: str, shape: tuple[int, ...]) -> Denoiser:
    """The denoiser with its defaults, but two epochs where it learns."""
    denoiser = DENOISERS[name]()
    return DENOISERS[name](epochs=2).learn(lessons(shape)) if isinstance(denoiser, Learned) else denoiser
