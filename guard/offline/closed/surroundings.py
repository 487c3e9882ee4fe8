"""Items around the clean ones, on which a closed model is asked: noise, mixtures, boxes, and its own boundary.

Rule 1: every item lies in unit space, and on the data's grid where there is one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from guard.offline.data.grid import Grid, Images, snap

NOISE_SHARES = (0.01, 0.3)  # of the box, smallest and largest: drawn evenly by their logarithm
BISECTION_STEPS = 6  # to where the answer changes between two items: a 64th of the way
Ask = Callable[[Images], NDArray[np.float32]]  # unit-space items -> shares [item, class]


def noisy(clean: Images, items: int, generator: np.random.Generator) -> Images:
    """Return clean items with noise, each of a size of its own; half of them keep most of their values."""
    chosen = clean[generator.integers(0, len(clean), items)]
    low, high = np.log(NOISE_SHARES)
    each = (items,) + (1,) * (clean.ndim - 1)
    size = np.exp(generator.uniform(low, high, each))
    noise = size * generator.uniform(-1, 1, chosen.shape)
    kept = generator.random(chosen.shape) < np.where(generator.random(each) < 0.5, 0.7, 0.0)
    return np.asarray((chosen + np.where(kept, 0, noise)).clip(0, 1), np.float32)


def mixed(clean: Images, items: int, generator: np.random.Generator) -> Images:
    """Return items between two clean ones; half of them take each value from one of the two."""
    first, second = (clean[generator.integers(0, len(clean), items)] for _ in range(2))
    each = (items,) + (1,) * (clean.ndim - 1)
    share = generator.random(each)
    swapped = generator.random(first.shape) < share
    either = generator.random(each) < 0.5
    weight = np.where(either, swapped, share)
    return np.asarray(first + weight * (second - first), np.float32)


def boxed(clean: Images, items: int, generator: np.random.Generator) -> Images:
    """Return items of the features' ranges: half drawn evenly, half with each value from some clean item."""
    low, high = clean.min(axis=0), clean.max(axis=0)
    drawn = generator.uniform(0, 1, (items, *clean.shape[1:])) * (high - low) + low
    flat = clean.reshape(len(clean), -1)
    rows = generator.integers(0, len(clean), (items, flat.shape[1]))
    shuffled = flat[rows, np.arange(flat.shape[1])].reshape(drawn.shape)
    even = generator.random((items,) + (1,) * (clean.ndim - 1)) < 0.5
    return np.asarray(np.where(even, drawn, shuffled), np.float32)


def boundary(first: Images, second: Images, ask: Ask, grid: Grid) -> tuple[Images, NDArray[np.float32]]:
    """Return items on the way between pairs, ever nearer to where the model's answer changes, and its shares of them.

    A pair with one answer gives none.
    """
    one, other = ask(first).argmax(axis=1), ask(second).argmax(axis=1)
    differ = one != other
    low, high, one = first[differ], second[differ], one[differ]
    met, shares = [first[:0]], [ask(first[:0])]
    for _ in range(BISECTION_STEPS if len(low) else 0):
        middle = snap((low + high) / 2, grid)
        found = ask(middle)
        met.append(middle)
        shares.append(found)
        same = (found.argmax(axis=1) == one).reshape((-1,) + (1,) * (low.ndim - 1))
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.concatenate(met), np.concatenate(shares)
