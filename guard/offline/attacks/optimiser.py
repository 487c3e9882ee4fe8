"""Optimisers of an ascent: what the gradients of all steps so far make of the direction of the next one.

`sign` looks at the last gradient alone; `momentum` adds up those of all steps, and `adam` divides their mean by their
size, coordinate by coordinate, so that it moves coordinates alike whose gradients are seldom large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.norm_ball import per_item, steepest
from guard.offline.attacks.ranges import ends
from guard.offline.data.norms import Norm

Optimiser = Literal["sign", "momentum", "adam"]
MEAN_SHARE, SQUARE_SHARE = 0.9, 0.999  # of what Adam and momentum remember from one step to the next


def known_optimiser(attack: Any) -> None:
    """Check that each optimiser is known and fits the norm. Raises ConfigError."""
    for one in ends(attack.optimiser):
        if one not in get_args(Optimiser):
            raise ConfigError(
                f"attack {attack.name!r}: optimiser = {attack.optimiser!r}; wanted one of "
                f"{', '.join(get_args(Optimiser))}, or a list of them"
            )
        if one == "adam" and attack.norm == "l1":
            raise ConfigError(
                f"attack {attack.name!r}: optimiser = {attack.optimiser!r}; in L1 a step goes along the steepest "
                "coordinates, and Adam makes all alike; wanted sign or momentum"
            )


class Directions:
    """The directions in which items [item, ...] move, each by an optimiser of its own, and what those remember.

    Source: momentum: Dong et al. 2018, arXiv:1710.06081, eq. 6, with a mean in the place of their L1 size, and their
    decay of 1 lowered to 0.9. Adam: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
    """

    def __init__(self, optimiser: Optimiser | Sequence[Optimiser], like: Tensor) -> None:
        names = [optimiser] * len(like) if isinstance(optimiser, str) else list(optimiser)
        self.momentum, self.adam = (
            torch.tensor([name == wanted for name in names], device=like.device) for wanted in ("momentum", "adam")
        )
        none = like[:0]
        self.mean = torch.zeros_like(like) if bool((self.momentum | self.adam).any()) else none
        self.square = torch.zeros_like(like) if bool(self.adam.any()) else none

    def unit(self, gradient: Tensor, items: Tensor, step: int, norm: Norm) -> Tensor:
        """Return the step of size one for some `items` (their places) from their gradients, the `step`-th, from 0.

        In L-infinity Adam's is as large as it makes each coordinate, at most about one. In L1 it is the direction
        itself, whose steepest coordinates `sparse_step` takes.
        """
        momentum, adam = self.momentum[items], self.adam[items]
        direction = gradient
        if bool(momentum.any()):
            chosen = items[momentum]
            size = per_item(gradient[momentum].flatten(1).abs().mean(dim=1), gradient).clamp_min(1e-30)
            self.mean[chosen] = MEAN_SHARE * self.mean[chosen] + gradient[momentum] / size
            direction = direction.clone()
            direction[momentum] = self.mean[chosen]
        found = direction if norm == "l1" else steepest(direction, norm)
        if bool(adam.any()):
            chosen = items[adam]
            by_adam = self.by_adam(gradient[adam], chosen, step)
            found = found.clone()
            found[adam] = by_adam if norm == "linf" else steepest(by_adam, norm)
        return found

    def by_adam(self, gradient: Tensor, items: Tensor, step: int) -> Tensor:
        self.mean[items] = MEAN_SHARE * self.mean[items] + (1 - MEAN_SHARE) * gradient
        self.square[items] = SQUARE_SHARE * self.square[items] + (1 - SQUARE_SHARE) * gradient.square()
        mean = self.mean[items] / (1 - MEAN_SHARE ** (step + 1))
        size = (self.square[items] / (1 - SQUARE_SHARE ** (step + 1))).sqrt()
        return mean / size.clamp_min(torch.finfo(size.dtype).tiny)
