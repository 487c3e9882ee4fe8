"""Fits what turns the scores of several detectors into one risk, and the bands of the cascade.

Rule 1: nothing here sees an item that a head was fitted on, or that calibrates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from guard.calibration import HINGES, Band, Floats, Fusion, clean_knots, unfitted

RIDGE = 3e-3  # on the mean loss; keeps a tail that no attack visits at rest
NOISE_SHARE = 0.25  # of the negatives' weight: the promise is made for clean items, noise should only not be mistaken
TAIL, FEWEST_IN_TAIL = 0.1, 20  # the share of clean items that shows how risk thins out, and how many it takes
EARLY = 1 / 40  # of the promised rate: what clean items may lose to an early reject
RESTING = 1e-3  # slope of every tail before fitting, so that an unknown kind of surprise still counts a little


def fit_fusion(clean: Floats, noisy: Floats, attacked: Floats, families: tuple[str, ...]) -> Fusion:
    """A logistic combiner with rising contributions of both tails of every detector.

    `clean`, `noisy`, `attacked` are [item, detector]. Negatives weigh as much as all families together, each family as
    much as the next. Without attacks the tails weigh the same (`unfitted`).
    """
    if len(attacked) == 0:
        return unfitted(clean)
    knots, levels = clean_knots(clean)
    blank = Fusion(knots, levels, np.zeros((clean.shape[1], 2, len(HINGES))), 0.0)
    negatives = np.concatenate([clean, noisy])
    features = blank.features(np.concatenate([negatives, attacked])).reshape(len(negatives) + len(attacked), -1)
    target = np.concatenate([np.zeros(len(negatives)), np.ones(len(attacked))])
    share = NOISE_SHARE if len(noisy) else 0.0
    weights = np.concatenate(
        [
            np.full(len(clean), (1 - share) / len(clean)),
            np.full(len(noisy), share / max(len(noisy), 1)),
            family_shares(families),
        ]
    )
    slopes, bias = logistic(features, target, weights)
    return Fusion(knots, levels, slopes.reshape(blank.weights.shape) + resting(blank.weights.shape), bias)


def resting(shape: tuple[int, ...]) -> Floats:
    slopes = np.zeros(shape)
    slopes[..., 0] = RESTING
    return slopes


def family_shares(families: tuple[str, ...]) -> Floats:
    """Weights [item] that add up to one, every family the same."""
    names, index, counts = np.unique(np.asarray(families), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (len(names) * counts[index]), dtype=np.float64)


def logistic(features: Floats, target: Floats, weights: Floats) -> tuple[Floats, float]:
    """Non-negative slopes and a free bias of the smallest weighted logistic loss."""
    scale = np.maximum(features.std(axis=0), 1e-6)
    scaled = features / scale

    def loss(theta: Floats) -> tuple[float, Floats]:
        margin = scaled @ theta[:-1] + theta[-1]
        value = 0.5 * weights @ (np.logaddexp(0.0, margin) - target * margin) + RIDGE * theta[:-1] @ theta[:-1]
        slope = 0.5 * weights * (expit(margin) - target)
        return float(value), np.append(scaled.T @ slope + 2 * RIDGE * theta[:-1], slope.sum())

    size = features.shape[1]
    bounds = [(0.0, None)] * size + [(None, None)]
    found = minimize(loss, np.zeros(size + 1), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    return np.maximum(found.x[:-1], 0.0) / scale, float(found.x[-1])


def early_reject(clean_risk: Floats, reject_rate: float) -> Band:
    """The band of a first program: no early pass, and early reject where next to no clean item comes.

    What is rejected early lies above all that later programs decide: every clean item there takes from the rate that
    they have left to find attacks with. The bound is where an exponential tail, drawn through the riskiest clean items,
    falls to EARLY of the promised rate. Too few items show no tail, and nothing is decided early.
    """
    start = np.quantile(clean_risk, 1 - TAIL)
    beyond = clean_risk[clean_risk > start] - start
    if len(beyond) < FEWEST_IN_TAIL:
        return Band()
    share = len(beyond) / len(clean_risk)
    return Band(high=float(start + beyond.mean() * np.log(share / (EARLY * reject_rate))))


def band_leak(band: Band, attacked_risk: Floats, families: tuple[str, ...]) -> dict[str, float]:
    """Share of each crafted family that an early pass would let through; the report prints it."""
    names: NDArray[np.str_] = np.asarray(families)
    return {str(name): float((attacked_risk[names == name] < band.low).mean()) for name in np.unique(names)}
