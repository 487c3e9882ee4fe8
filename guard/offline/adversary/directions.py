"""Directions of the adaptive attack's steps, one function a method.

Rule 1: an item's direction depends on no other item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guard.offline.attacks.norm_ball import per_item, steepest

Method = Literal["selective", "weighted", "orthogonal", "feature_matching", "adapted", "several_targets"]
LOGIT_MARGIN = 0.5  # margin in logits by which the class stays lost while the risk is descended
RISK_MARGIN = 0.05  # how far below a threshold counts as safely below
ODDS_STEP, MAX_LOG_ODDS = 0.5, 4.0  # by which a step moves an item's weight towards the goal that is missing


@dataclass(frozen=True)
class Sight:
    """Values that the attacker computes at a point, all of them differentiable with respect to the point."""

    point: Tensor  # [item, ...]
    margin: Tensor  # [item] true class's logit minus the best other one; negative: fooled
    excess: Tensor  # [item, rate] risk minus each falling threshold; negative passes
    distance: Tensor | None = None  # [item] between the item's evidence and its guide's
    log_odds: Tensor | None = None  # [item] of the class's weight over the risk's, adapted step by step; None: even

    @property
    def wants_class(self) -> Tensor:
        """Indicator [item]: 1 while the class is not safely lost (margin above -LOGIT_MARGIN), else 0."""
        return (self.margin > -LOGIT_MARGIN).to(self.point.dtype)

    @property
    def wants_pass(self) -> Tensor:
        """Indicator [item]: 1 while the excess over the lowest threshold is not safely below zero, else 0."""
        return (self.excess[:, -1] > -RISK_MARGIN).to(self.point.dtype)

    @property
    def next_log_odds(self) -> Tensor:
        """Log odds [item] of the next step: up while the class is not lost, down while only the pass is missing."""
        before = torch.zeros_like(self.wants_class) if self.log_odds is None else self.log_odds
        move = self.wants_class - (1 - self.wants_class) * self.wants_pass
        return (before + ODDS_STEP * move).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)

    def slope(self, values: Tensor, *, last: bool = False) -> Tensor:
        """Return the gradient of each item's value to its own point; `last` frees the graph that all passes share."""
        return torch.autograd.grad(values.sum(), self.point, retain_graph=not last)[0]


def pursued(excess: Tensor) -> Tensor:
    """Return the excess [item] over the first threshold that an item is not safely below, or else over the last."""
    met = (excess < -RISK_MARGIN).long().cumprod(dim=1).sum(dim=1).clamp_max(excess.shape[1] - 1)
    return excess.gather(1, met[:, None])[:, 0]


def selective(sight: Sight) -> Tensor:
    """Return the margin's gradient until the class is lost, the risk's afterwards; one backward serves all items.

    Source: Bryniarski et al. 2021, arXiv:2106.15023, section 4.1.
    """
    wants = sight.wants_class
    return sight.slope(wants * sight.margin + (1 - wants) * pursued(sight.excess).to(wants.dtype), last=True)


def weighted(sight: Sight) -> Tensor:
    """Return the sum of both gradients at unit length; a goal that is still wanted weighs six times one that is met.

    Source: Carlini & Wagner 2017, arXiv:1705.07263, section 3; their weight is searched for, ours follows the need.
    """
    by_margin, by_excess = sight.slope(sight.margin), sight.slope(pursued(sight.excess), last=True)
    like = sight.point
    of_class, of_risk = per_item(0.2 + sight.wants_class, like), per_item(0.2 + sight.wants_pass, like)
    return of_class * steepest(by_margin, "l2") + of_risk * steepest(by_excess, "l2")


def adapted(sight: Sight) -> Tensor:
    """Return the sum of both gradients at unit length, weighed by odds that each item's own steps have led to.

    Where the class is regained whenever the risk falls, the odds settle between the two, which neither of `selective`
    and `weighted` can: their weights follow the present point alone.

    Source: Rony et al. 2021, arXiv:2011.11857 (multipliers adapted per item and step); their penalty is left out.
    """
    by_margin, by_excess = sight.slope(sight.margin), sight.slope(pursued(sight.excess), last=True)
    weight = per_item(sight.next_log_odds.sigmoid(), sight.point)
    return weight * steepest(by_margin, "l2") + (1 - weight) * steepest(by_excess, "l2")


def orthogonal(sight: Sight) -> Tensor:
    """Return the gradient of `selective` without its part along the other one, so that neither goal pays for the other.

    Source: Bryniarski et al. 2021, arXiv:2106.15023, equations 4 and 5. As there, the sign is taken afterwards.
    """
    by_margin = steepest(sight.slope(sight.margin), "l2")
    by_excess = steepest(sight.slope(pursued(sight.excess), last=True), "l2")
    along = per_item((by_margin * by_excess).flatten(1).sum(dim=1), by_margin)
    wants = per_item(sight.wants_class, by_margin).bool()
    return torch.where(wants, by_margin - along * by_excess, by_excess - along * by_margin)


def feature_matching(sight: Sight) -> Tensor:
    """Return the gradient of the distance to a guide's evidence, or of the risk if only the guard's pass is missing.

    Source: Sabour et al. 2016, arXiv:1511.05122 (one latent, distance alone); Tramer et al. 2020, arXiv:2002.08347
    (logits). All evidence that another item can have is matched: latents, logits, denoised and steered logits.

    Raises:
        ValueError: there is no guide.
    """
    if sight.distance is None:
        raise ValueError("feature matching needs a guide: clean items, and a guard whose evidence can be looked at")
    wants = torch.maximum(sight.wants_class, 1 - sight.wants_pass)
    return sight.slope(wants * sight.distance + (1 - wants) * pursued(sight.excess).to(wants.dtype), last=True)


DIRECTIONS: Mapping[Method, Callable[[Sight], Tensor]] = {
    "selective": selective,
    "weighted": weighted,
    "orthogonal": orthogonal,
    "feature_matching": feature_matching,
    "adapted": adapted,
    "several_targets": selective,  # towards one class after another
}
