"""Fits the fusion of several detectors' scores to one risk, and the bands of the cascade.

The fitted part knows the attacks that were crafted, and weighs every detector by them. A detector that no crafted
attack moved has next to no weight in it; so a share of whatever rate is promised goes to the most surprised detector.
Where one does not judge by the attacked weights (a second opinion), a larger share goes to it alone. How large it is,
`choose_share.py` finds out.

Rule 1: nothing here sees an item that a head was fitted on, or that calibrates.

How it works. A weighted logistic regression of attacked against clean and noisy items gives the fitted risk, which only
rises in either tail of a score. Beside it stands the surprise: how far the furthest score lies in its upper tail.
The risk of an item is the larger of the two, once `floor` and `pace` have put the surprise on the fitted risk's scale.

Example: let the largest tenth of the clean fitted risks begin at 2.0 and lie 0.5 beyond on average; let the largest
tenth of the clean surprises begin at 0.5 and lie 1.0 beyond. Then `pace` is 0.5 / 1.0 = 0.5. Drawn on as lines, the
first tail stands for 90 % of the items at 2.0 + 0.5 ln(0.1 / 0.9) = 0.901 and the second for 10 % at 0.5, so `floor` is
0.901 - 0.5 * 0.5 = 0.651. Of a rate of 1 % the fitted risk takes 0.9 %, the items above 2.0 + 0.5 ln(0.1 / 0.009)
= 3.204. The surprise takes 0.1 %, those above 0.5 + ln(0.1 / 0.001) = 5.105, which on the risk's scale is
0.651 + 0.5 * 5.105 = 3.204: the same threshold. A first program with that tail of risks may reject early, at a promised
rate of 1 %, above 2.0 + 0.5 ln(0.1 / 0.00025) = 4.996, where 1/40 of 1 % of the clean items are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from guard.calibration import Band
from guard.errors import DataError
from guard.fusion import HINGE_DEVIATIONS, Floats, Fusion, Surprise, clean_knots, unfitted
from guard.offline.data.attacked import Attacked

MAX_FIT_STEPS = 500
RIDGE_PENALTY = 3e-3  # on the mean loss; keeps a tail that no attack visits at rest
# Of the negatives' weight. The promise does not need the weights, since clean ranks keep it; that noise is not taken
# for an attack rests on nothing else
NOISE_WEIGHT_SHARE = 0.5
# Of a promised rate, where there are no families to choose it by: for what one detector finds and the fitted risk does
# not; and where a detector is independent of the attacked weights, for it alone
SURPRISE_RATE_SHARE, INDEPENDENT_RATE_SHARE = 0.1, 0.3
TAIL_SHARE, MIN_TAIL_ITEMS = 0.1, 20  # the share of items that a tail is fitted to, and how many that must be
EARLY_RATE_SHARE = 1 / 40  # of the promised rate: what clean items may lose to an early reject
ROUNDING_SHARE = 1e-5  # of a number's size: a tail no longer than that is float32's, not the detector's
# Slope that every fitted tail gets besides, so that an unknown kind of surprise still counts a little
RESTING_SLOPE = 1e-3


def usual_share(independent: Sequence[bool]) -> float:
    """Return the share of the rate that is kept for surprise where nothing tells which is best."""
    return INDEPENDENT_RATE_SHARE if any(independent) else SURPRISE_RATE_SHARE


def fit_fusion(
    clean: Floats,
    noisy: Floats,
    attacked: Attacked[Floats],
    independent: Sequence[bool] = (),
    rate_share: float | None = None,
) -> Fusion:
    """Fit a logistic combiner with rising contributions of both tails of every detector, and the surprise beside it.

    All are scores [item, detector]. Negatives weigh as much as all attacks together, each attack as much as the next.
    Without attacks the tails weigh the same (`unfitted`), and there is no surprise. `independent` says of each detector
    whether the surprise is kept for it; of all of them where it says so of none. `rate_share` of a promised rate is the
    surprise's; the usual share unless given.

    Raises:
        DataError: a score is not finite, or the fit did not converge.
    """
    if len(attacked) == 0:
        return unfitted(clean)
    return add_surprise(fit_weights(clean, noisy, attacked), clean, noisy, independent, rate_share)


def fit_weights(clean: Floats, noisy: Floats, attacked: Attacked[Floats]) -> Fusion:
    """Fit the weights of a fusion that has no surprise yet, as `fit_fusion` does. Raises DataError."""
    for scores in (clean, noisy, attacked.items):
        check_finite(scores)
    knots, levels = clean_knots(clean)
    count = clean.shape[1]
    blank = Fusion(knots, levels, np.zeros((count, 2, len(HINGE_DEVIATIONS))), 0.0, Surprise.silent(count))
    negatives = np.concatenate([clean, noisy])
    features = blank.features(np.concatenate([negatives, attacked.items])).reshape(len(negatives) + len(attacked), -1)
    target = np.concatenate([np.zeros(len(negatives)), np.ones(len(attacked))])
    shares = negative_shares(len(clean), len(noisy))
    slopes, bias = logistic(features, target, np.concatenate([shares, attacked.shares()]))
    return replace(blank, weights=slopes.reshape(blank.weights.shape) + resting(blank.weights.shape), bias=bias)


def add_surprise(
    weighed: Fusion, clean: Floats, noisy: Floats, independent: Sequence[bool], rate_share: float | None
) -> Fusion:
    """Return the fusion with a surprise that takes a share of the rate, of the detectors that it is kept for."""
    shares = negative_shares(len(clean), len(noisy))
    tails = [exponential_tail(scores, shares) for scores in np.concatenate([clean, noisy]).T]
    own = [tail if kept else None for tail, kept in zip(tails, independent, strict=False)]
    alone = any(tail is not None for tail in own)
    heard = [*own, *[None] * (len(tails) - len(own))] if alone else tails
    share = usual_share((alone,)) if rate_share is None else rate_share
    return replace(weighed, surprise=surprise_beside(weighed, clean, heard, share))


def check_finite(scores: Floats) -> None:
    """Check that scores [item, detector] are finite. Raises DataError, which counts detectors from 1."""
    unusable = (~np.isfinite(scores)).sum(axis=0)
    if unusable.any():
        detector = int(unusable.argmax())
        raise DataError(
            f"detector {detector + 1} of {scores.shape[1]}, the screen's first, has scores that are not finite: "
            f"{unusable[detector]} of {len(scores)}; leave it out of the recipe, or tap other layers"
        )


def resting(shape: tuple[int, ...]) -> Floats:
    slopes = np.zeros(shape)
    slopes[..., 0] = RESTING_SLOPE
    return slopes


def negative_shares(clean: int, noisy: int) -> Floats:
    """Return weights [item] of clean items and of noise after them, adding up to one."""
    share = NOISE_WEIGHT_SHARE if noisy else 0.0
    return np.concatenate([np.full(clean, (1 - share) / clean), np.full(noisy, share / max(noisy, 1))])


def logistic(features: Floats, target: Floats, weights: Floats) -> tuple[Floats, float]:
    """Return the non-negative slopes and the free bias of the smallest weighted logistic loss with a ridge.

    Bounds are what scikit-learn's logistic regression lacks. Raises DataError.
    """
    scale = np.maximum(features.std(axis=0), 1e-6)
    scaled = features / scale

    def loss(theta: Floats) -> tuple[float, Floats]:
        margin = scaled @ theta[:-1] + theta[-1]
        value = 0.5 * weights @ (np.logaddexp(0.0, margin) - target * margin) + RIDGE_PENALTY * theta[:-1] @ theta[:-1]
        slope = 0.5 * weights * (expit(margin) - target)
        return float(value), np.append(scaled.T @ slope + 2 * RIDGE_PENALTY * theta[:-1], slope.sum())

    size = features.shape[1]
    bounds = [(0.0, None)] * size + [(None, None)]
    found = minimize(
        loss, np.zeros(size + 1), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": MAX_FIT_STEPS}
    )
    if not found.success:
        raise DataError(
            f"the fusion of detectors did not converge on {len(features)} items ({found.message}); craft more of them"
        )
    return np.maximum(found.x[:-1], 0.0) / scale, float(found.x[-1])


@dataclass(frozen=True)
class Tail:
    """An exponential tail of a number: beyond `start` lie `share` of the items, on average by `scale`."""

    start: float
    scale: float
    share: float

    def at(self, rate: float) -> float:
        """Return where an exponential tail falls to this share of the items."""
        return float(self.start + self.scale * np.log(self.share / rate))


def exponential_tail(values: Floats, weights: Floats | None = None) -> Tail | None:
    """Fit an exponential tail to the largest of the values [item], which `weights` may weigh.

    None where too few lie out there, or no further than float32 rounds.
    """
    shares = np.full(len(values), 1 / len(values)) if weights is None else weights
    start = np.quantile(values, 1 - TAIL_SHARE, weights=shares, method="inverted_cdf")
    beyond = values > start
    if beyond.sum() < MIN_TAIL_ITEMS:
        return None
    share = shares[beyond].sum()
    scale = float((values[beyond] - start) @ shares[beyond] / share)
    return Tail(float(start), scale, float(share)) if scale > ROUNDING_SHARE * max(abs(float(start)), 1.0) else None


def surprise_beside(fitted: Fusion, clean: Floats, tails: Sequence[Tail | None], share: float) -> Surprise:
    """Return the surprise beside `fitted` that takes `share` of a rate from clean items [item, detector].

    Where both tails are exponential, a line maps the surprise to the scale of the risk: at every rate the fitted risk
    reaches (1 - share) of it where surprise reaches share. A score whose clean tail is heavier takes more of the
    smallest rates, one that is lighter less; the promise is kept by the ranks either way. `tails` are the detectors';
    noise is in them, or a detector that reacts to harmless noise would drown the others.
    """
    starts = np.asarray([0.0 if tail is None else tail.start for tail in tails])
    slopes = np.asarray([0.0 if tail is None else 1 / tail.scale for tail in tails])
    furthest = exponential_tail(Surprise(starts, slopes, 0.0, 1.0).furthest(clean))
    risk = exponential_tail(fitted.risk(clean))
    if furthest is None or risk is None:
        return Surprise.silent(len(tails))
    pace = risk.scale / furthest.scale
    floor = risk.at(1 - share) - pace * furthest.at(share)
    return Surprise(starts, slopes, floor, pace)


def early_reject(clean_risk: Floats, reject_rate: float) -> Band:
    """Return the band of a first program: no early pass, and early reject where next to no clean item comes.

    What is rejected early lies above all that later programs decide: every clean item there takes from the rate that
    they have left to find attacks with. The bound is where an exponential tail, drawn through the riskiest clean items,
    falls to EARLY_RATE_SHARE of the promised rate. Too few items show no tail, and nothing is decided early.
    """
    tail = exponential_tail(clean_risk)
    return Band() if tail is None else Band(high=tail.at(EARLY_RATE_SHARE * reject_rate))


def band_leak(band: Band, risk: Attacked[Floats]) -> dict[str, float]:
    """Return the share of each crafted attack that an early pass would let through; the manifest records it."""
    names = risk.names
    return {str(name): float((risk.items[names == name] < band.low).mean()) for name in np.unique(names)}
