"""Evidence from gradients on the way to the item: Integrated Gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.offline.evidence.kinds.gradients import CopyNeed, Objective


@dataclass(frozen=True)
class IntegratedGradients(CopyNeed):
    """Integrated Gradients [shape of the input]: what each value adds to the objective on the way from a baseline.

    The way is a straight line from an input that is `baseline` everywhere; the integral is Gauss and Legendre's sum
    over `steps` points of it, each a copy of the item. The attributions add up to the objective at the item less that
    at the baseline, but for the sum's error.

    Source: Sundararajan et al. 2017, arXiv:1703.01365, eq. 1. They take 20 to 300 equal steps; each costs a forward and
    a backward.
    """

    steps: int = 8
    baseline: float = 0.0
    of: Objective = "logit"

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the places on the way, from 0 to 1, and their weights, which add up to 1 [step]."""
        places, weights = np.polynomial.legendre.leggauss(self.steps)
        return (1 + places) / 2, weights / 2

    def shares(self) -> tuple[float, ...]:
        return tuple(float(place) for place in self.points()[0])

    def patterns(self, shape: tuple[int, ...]) -> Tensor:
        left = torch.tensor([(1 - share) * self.baseline for share in self.shares()])
        return left.reshape(-1, *[1] * len(shape)).expand(-1, *shape)

    def read(self, images: Tensor, gradients: Tensor) -> Tensor:
        weights = torch.from_numpy(self.points()[1]).to(gradients.dtype).reshape(-1, *[1] * (images.ndim - 1))
        return (images - self.baseline) * (gradients * weights).sum(dim=1)
