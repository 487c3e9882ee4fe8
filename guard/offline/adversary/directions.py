"""Where an attacker who knows the guard walks next: one function a method.

Rule 1: an item's direction depends on no other item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guard.offline.attacks.norm_ball import per_item, steepest

Method = Literal["selective", "weighted", "orthogonal", "feature_matching"]
CONFIDENCE = 0.5  # margin in logits by which the class is kept lost while the risk is worked on
SLACK = 0.05  # how far below a threshold counts as safely below


@dataclass(frozen=True)
class Sight:
    """What the attacker sees at a point, all of it differentiable to the point."""

    point: Tensor  # [item, ...]
    margin: Tensor  # [item] true class over the best other one, in logits; negative: fooled
    excess: Tensor  # [item, rate] over what passes, at falling thresholds; negative passes
    distance: Tensor | None = None  # [item] of the evidence from the guide's

    @property
    def wants_class(self) -> Tensor:
        """[item] 1 while the class is not safely lost."""
        return (self.margin > -CONFIDENCE).to(self.point.dtype)

    @property
    def wants_pass(self) -> Tensor:
        """[item] 1 while the lowest threshold is not safely met."""
        return (self.excess[:, -1] > -SLACK).to(self.point.dtype)

    def slope(self, values: Tensor, *, last: bool = False) -> Tensor:
        """Gradient of each item's value to its own point; `last` frees what the passes share."""
        return torch.autograd.grad(values.sum(), self.point, retain_graph=not last)[0]


def pursued(excess: Tensor) -> Tensor:
    """The excess [item] over the first threshold that an item is not safely below; over the last where it is."""
    met = (excess < -SLACK).long().cumprod(dim=1).sum(dim=1).clamp_max(excess.shape[1] - 1)
    return excess.gather(1, met[:, None])[:, 0]


def selective(sight: Sight) -> Tensor:
    """The margin until the class is lost, the risk afterwards; one backward, as items do not depend on each other.

    Source: Bryniarski et al. 2021, arXiv:2106.15023, section 4.1.
    """
    wants = sight.wants_class
    return sight.slope(wants * sight.margin + (1 - wants) * pursued(sight.excess).to(wants.dtype), last=True)


def weighted(sight: Sight) -> Tensor:
    """Both at unit length, the one that is still wanted six times the other.

    Source: Carlini & Wagner 2017, arXiv:1705.07263, section 3; their weight is searched for, ours follows the need.
    """
    by_margin, by_excess = sight.slope(sight.margin), sight.slope(pursued(sight.excess), last=True)
    like = sight.point
    of_class, of_risk = per_item(0.2 + sight.wants_class, like), per_item(0.2 + sight.wants_pass, like)
    return of_class * steepest(by_margin, "l2") + of_risk * steepest(by_excess, "l2")


def orthogonal(sight: Sight) -> Tensor:
    """As `selective`, but each gradient without its part along the other: what is gained is not paid for elsewhere.

    Source: Bryniarski et al. 2021, arXiv:2106.15023, equations 4 and 5. As there, the sign is taken afterwards.
    """
    by_margin = steepest(sight.slope(sight.margin), "l2")
    by_excess = steepest(sight.slope(pursued(sight.excess), last=True), "l2")
    along = per_item((by_margin * by_excess).flatten(1).sum(dim=1), by_margin)
    wants = per_item(sight.wants_class, by_margin).bool()
    return torch.where(wants, by_margin - along * by_excess, by_excess - along * by_margin)


def feature_matching(sight: Sight) -> Tensor:
    """Towards the evidence of a guide until the class is lost, and again once the guard passes; the risk in between.

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
}
