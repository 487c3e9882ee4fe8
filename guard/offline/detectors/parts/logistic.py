"""Logistic regression over a few numbers an item, by which a detector weighs its layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guard.offline.data.attacked import Attacked
from guard.offline.detectors.parts.supervision import item_weights

RIDGE_PENALTY = 1e-2  # ridge penalty on the slopes of standardised numbers, beside the mean loss


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

    Attacks weigh as much as all negatives, each attack as much as the next; noise a quarter of the negatives.
    """
    if len(attacked) == 0:
        return Logistic.mean(clean.shape[1])
    numbers = torch.cat([clean, noisy, attacked.items]).double()
    target = torch.cat([torch.zeros(len(clean) + len(noisy)), torch.ones(len(attacked))]).double()
    weights = item_weights(len(clean), len(noisy), attacked).double()
    centre, spread = numbers.mean(dim=0), numbers.std(dim=0).clamp_min(1e-6)
    scaled = torch.cat([(numbers - centre) / spread, torch.ones(len(numbers), 1, dtype=torch.float64)], dim=1)
    theta = torch.zeros(scaled.shape[1], dtype=torch.float64)
    ridge = torch.full_like(theta, RIDGE_PENALTY)
    ridge[-1] = 0.0
    for _ in range(50):  # Newton's steps
        share = torch.sigmoid(scaled @ theta)
        slope = scaled.T @ (weights * (share - target)) / len(target) + ridge * theta
        bend = (scaled * (weights * share * (1 - share))[:, None]).T @ scaled / len(target)
        step = torch.linalg.solve(bend + torch.diag(ridge + 1e-9), slope)
        theta = theta - step
        if float(step.abs().max()) < 1e-8:
            break
    return Logistic(centre.float(), (theta[:-1] / spread).float(), theta[-1].float())
