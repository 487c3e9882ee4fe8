"""Agreement of two engines: how far apart an item's values may lie, on a scale that means something.

Rule 1: a number near zero has no error of its own. Logits are judged by their spread over the classes and by what they
decide, latents by how far items lie apart; an item of small values by the spread of the typical item.
Rule 2: what float32 rounds off is no disagreement: ROUNDED_SHARE of an item's largest value, or of its length.

Example: two items with logits (3, -3) and (0.001, -0.001) have spreads 3 and 0.001, in the median 1.5. With a tolerance
of 1e-4 the first may differ by 3e-4, the second by 1.5e-4: 15 % of its own values, and nothing beside the first's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.fusion import Floats

ROUNDED_SHARE = 2.0**-17  # float32 holds 24 bits; a deep network loses some seven on the way
TINY = float(np.finfo(np.float32).tiny)


def tolerated(own: Floats, size: Floats, tolerance: float) -> Floats:
    """Return the difference that is tolerated [item], from each item's own spread and the size of its values."""
    spread = np.maximum(own, np.median(own)) if len(own) else own
    return np.maximum(np.maximum(tolerance * spread, ROUNDED_SHARE * size), TINY)


def tolerated_logits(logits: NDArray[Any], tolerance: float) -> Floats:
    """Return how far each of an item's logits may be off [item]; `tolerance` is a share of their spread."""
    values = logits.astype(np.float64)
    own = values.std(axis=1) if values.shape[1] > 1 else np.abs(values[:, 0] - np.median(values[:, 0]))
    return tolerated(own, np.abs(values).max(axis=1, initial=0.0), tolerance)


def tolerated_latents(latents: NDArray[Any], tolerance: float) -> Floats:
    """Return how far a latent [item, ...] may be off in all [item]; `tolerance` is a share of the items' spread."""
    values = flat(latents)
    return tolerated(np.linalg.norm(values - values.mean(axis=0), axis=1), np.linalg.norm(values, axis=1), tolerance)


def logits_apart(found: NDArray[Any], expected: NDArray[Any]) -> Floats:
    """Return the largest difference of any class's logit [item]."""
    return np.asarray(np.abs(found.astype(np.float64) - expected).max(axis=1, initial=0.0))


def length_apart(found: NDArray[Any], expected: NDArray[Any]) -> Floats:
    """Return the length of each item's difference [item]."""
    return np.asarray(np.linalg.norm(flat(found) - flat(expected), axis=1))


def flat(values: NDArray[Any]) -> Floats:
    """Return values as vectors [item, feature] in double precision."""
    return values.reshape(len(values), -1).astype(np.float64)


def decided_otherwise(found: NDArray[Any], expected: NDArray[Any], allowed: Floats) -> NDArray[np.bool_]:
    """Return which items are named another class [item], ties left out: a lead that may be lost to `allowed` [item]."""
    named = found.argmax(axis=1)
    lead = expected.max(axis=1).astype(np.float64) - expected[np.arange(len(expected)), named]
    return np.asarray(lead > 2 * allowed)
