"""Logistic regression over a few numbers an item, by which a detector weighs its layers; scikit-learn fits it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from guard.errors import DataError, first_line
from guard.offline.data.attacked import Attacked
from guard.offline.data.deviation import spread_of
from guard.offline.detectors.parts.supervision import item_weights

RIDGE_PENALTY = 1e-2  # ridge penalty on the slopes of standardised numbers, beside the mean loss
SLOPE_TOLERANCE = 1e-10  # of the objective at its optimum; float32, which the coefficients become, holds no more
MAX_NEWTON_STEPS = 100


class Logistic(nn.Module):
    """Module that maps numbers [item, feature] to log-odds [item]."""

    def __init__(self, centre: Tensor, slopes: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("slopes", slopes)
        self.register_buffer("bias", bias)
        self.centre: Tensor
        self.slopes: Tensor
        self.bias: Tensor

    @staticmethod
    def mean(features: int) -> Logistic:
        """Return the plain mean of the numbers, for use where there is nothing to learn from."""
        return Logistic(torch.zeros(features), torch.full((features,), 1.0 / features), torch.zeros(()))

    def forward(self, numbers: Tensor) -> Tensor:
        return (numbers - self.centre) @ self.slopes + self.bias


def fit_logistic(clean: Tensor, noisy: Tensor, attacked: Attacked[Tensor]) -> Logistic:
    """Fit the regression to numbers [item, feature] of clean, noisy and attacked items; the mean if none is attacked.

    Attacks weigh as much as all negatives, each attack as much as the next; noise half of the negatives.

    Raises:
        DataError: a number is not finite, or the fit did not converge.
    """
    if len(attacked) == 0:
        return Logistic.mean(clean.shape[1])
    numbers = torch.cat([clean, noisy, attacked.items]).double()
    unusable = int((~numbers.isfinite()).any(dim=1).sum())
    if unusable:
        raise DataError(
            f"a logistic regression over {numbers.shape[1]} numbers an item: {unusable} of {len(numbers)} items have "
            "one that is not finite; leave the detector out of the recipe, or tap other layers"
        )
    target = np.repeat([0, 1], [len(clean) + len(noisy), len(attacked)])
    weights = item_weights(len(clean), len(noisy), attacked).double()
    centre, spread = numbers.mean(dim=0), spread_of(numbers)
    slopes, bias = optimum(((numbers - centre) / spread).numpy(), target, weights.numpy())
    return Logistic(centre.float(), (torch.from_numpy(slopes) / spread).float(), torch.tensor(bias).float())


def optimum(scaled: NDArray[Any], target: NDArray[Any], weights: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Return slopes [feature] and bias of the smallest weighted mean loss plus RIDGE_PENALTY / 2 of squared slopes.

    Newton's steps to the last digits in float64; L-BFGS, the library's default, stops where the loss no longer falls,
    which is earlier. `weights` [item] have mean one. Raises DataError.
    """
    model = LogisticRegression(
        C=1 / (RIDGE_PENALTY * len(scaled)), solver="newton-cholesky", tol=SLOPE_TOLERANCE, max_iter=MAX_NEWTON_STEPS
    )
    try:
        with warnings.catch_warnings():
            for kind in (ConvergenceWarning, LinAlgWarning):
                warnings.simplefilter("error", kind)
            model.fit(scaled, target, sample_weight=weights)
    except (ConvergenceWarning, LinAlgWarning) as warning:
        raise DataError(
            f"a logistic regression over {scaled.shape[1]} numbers an item and {len(scaled)} items did not converge: "
            f"{first_line(warning)}; leave the detector out of the recipe, or tap other layers"
        ) from warning
    return model.coef_[0], float(model.intercept_[0])
