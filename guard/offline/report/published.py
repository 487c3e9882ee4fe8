"""Robust accuracies that are known to be possible: above them a claim is more likely a weak attack than a discovery.

Source: Croce et al. 2021, arXiv:2010.09670 (RobustBench; its leaderboards under AutoAttack). Tramer 2022,
arXiv:2107.11630: a detector that is robust within some distance implies a classifier, if a slow one, that is robust
within half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BUDGET_TOLERANCE = 1e-6  # by which a budget may fall short of one published, being rounded


@dataclass(frozen=True)
class Published:
    """The best robust accuracy on a data set, within a budget."""

    data: str
    norm: str
    budget: float
    spoken: str  # the budget
    accuracy: float


TABLE: tuple[Published, ...] = (
    Published("CIFAR-10", "linf", 8 / 255, "8/255", 0.7371),
    Published("CIFAR-10", "l2", 0.5, "0.5", 0.8497),
    Published("CIFAR-100", "linf", 8 / 255, "8/255", 0.4266),
    Published("ImageNet", "linf", 4 / 255, "4/255", 0.5968),
)


def data_like(shape: Sequence[int], classes: int) -> str | None:
    """Return the data set that the published figures hold for, as far as shape and classes tell."""
    if tuple(shape) == (3, 32, 32):
        return {10: "CIFAR-10", 100: "CIFAR-100"}.get(classes)
    return "ImageNet" if len(shape) == 3 and shape[0] == 3 and classes == 1000 else None


def best_within(data: str | None, norm: str, budget: float) -> Published | None:
    """Return the figure of the largest published budget that is no larger than this one; robustness falls beyond."""
    fitting = [p for p in TABLE if (p.data, p.norm) == (data, norm) and p.budget <= budget + BUDGET_TOLERANCE]
    return max(fitting, key=lambda p: p.budget, default=None)
