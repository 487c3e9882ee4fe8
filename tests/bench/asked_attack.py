"""An attack that asks a model itself, or through its guard, for labels alone: the walk along the boundary.

It begins at the nearest item that fools, goes back towards the clean one to where that ends, and walks on along the
boundary towards the clean item, by random steps of which those are kept that still fool. What fools is the caller's to
say: that the model names another class, or that it does and the guard lets it pass.

Source: Brendel et al. 2018, arXiv:1712.04248, algorithm 1. Step sizes adapt for each item by success alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Items = NDArray[np.float32]
Fools = Callable[[Items, NDArray[np.int64]], NDArray[np.bool_]]  # items and their true classes -> whether each fools
BISECTION_STEPS = 10
SIDEWAYS_SHARE, INWARDS_SHARE = 0.1, 0.1  # of the distance to the clean item, at first
GROWTH, DECAY, MAX_INWARDS_SHARE = 1.05, 0.95, 0.5


def walk(
    fools: Fools,
    clean: Items,
    labels: NDArray[np.int64],
    others: Items,
    *,
    steps: int,
    generator: np.random.Generator,
) -> Items:
    """Walk from each clean item's nearest of `others` that fools, all [item, feature] in unit space.

    What is returned fools; `labels` [item] are the true classes of the clean items.
    """
    usable = {label: others[fools(others, np.full(len(others), label))] for label in np.unique(labels).tolist()}
    start = np.stack([nearest(item, usable[label]) for item, label in zip(clean, labels.tolist(), strict=True)])
    inside, outside = np.zeros((len(clean), 1)), np.ones((len(clean), 1))
    for _ in range(BISECTION_STEPS):
        middle = (inside + outside) / 2
        hit = fools(between(clean, start, middle), labels)[:, None]
        inside, outside = np.where(hit, inside, middle), np.where(hit, middle, outside)
    current = between(clean, start, outside)
    inwards = np.full((len(clean), 1), INWARDS_SHARE)
    for _ in range(steps):
        far = length(current - clean)
        sideways = generator.normal(size=clean.shape)
        moved = current - clean + sideways * (SIDEWAYS_SHARE * far / length(sideways))
        tried = clean + moved * (far / length(moved)) * (1 - inwards)
        tried = tried.clip(0, 1).astype(np.float32)
        hit = fools(tried, labels)[:, None]
        current = np.where(hit, tried, current)
        inwards = np.where(hit, np.minimum(inwards * GROWTH, MAX_INWARDS_SHARE), inwards * DECAY)
    return current


def nearest(item: NDArray[np.float32], others: Items) -> NDArray[np.float32]:
    return np.asarray(others[np.argmin(((others - item) ** 2).sum(axis=1))])


def between(clean: Items, start: Items, share: NDArray[np.float64]) -> Items:
    return np.asarray(clean + share * (start - clean), dtype=np.float32)


def length(moves: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(moves, axis=1, keepdims=True).clip(1e-12))
