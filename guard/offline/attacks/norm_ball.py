"""The ball of allowed perturbations: measure, project, draw, and the steepest step in a norm.

Rule 1: projecting twice is projecting once, what is inside comes back bit for bit, what comes out is within budget
(L2: but for a millionth of it), and L2 keeps the direction.
Every function flattens an item: vectors [item, feature] and images [item, channel, height, width] are alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from guard.offline.attacks.attack import Norm

ORDERS: Mapping[Norm, float] = {"linf": torch.inf, "l2": 2, "l1": 1}
SLACK = 1e-6  # of the budget: what rounding may add, so that a projected perturbation counts as inside


def sizes(perturbation: Tensor, norm: Norm) -> Tensor:
    """How large each item's perturbation is, [item]."""
    found: Tensor = torch.linalg.vector_norm(perturbation.flatten(1), ord=ORDERS[norm], dim=1)
    return found


def project(perturbation: Tensor, budget: float, norm: Norm) -> Tensor:
    """The nearest perturbation of at most `budget`."""
    if norm == "linf":
        return perturbation.clamp(-budget, budget)
    size = per_item(sizes(perturbation, norm), perturbation)
    nearest = onto_l1(perturbation, budget) if norm == "l1" else perturbation * (budget / size.clamp_min(1e-30))
    return torch.where(size > budget * (1 + SLACK), nearest, perturbation)


def onto_l1(perturbation: Tensor, budget: float) -> Tensor:
    """Every entry shrunk by one amount an item, small ones to zero, so that what is left has size `budget`.

    Source: Duchi et al. 2008, "Efficient projections onto the l1-ball", figure 1.
    """
    amounts = perturbation.flatten(1).abs()
    ordered = amounts.sort(dim=1, descending=True).values
    count = torch.arange(1, amounts.shape[1] + 1, device=amounts.device, dtype=amounts.dtype)
    shrink = (ordered.cumsum(dim=1) - budget) / count  # if the largest `count` entries were those that stay
    stay = (ordered > shrink).sum(dim=1, keepdim=True).clamp_min(1)
    left = (amounts - shrink.gather(1, stay - 1)).clamp_min(0)
    left = left * (budget / left.sum(dim=1, keepdim=True).clamp_min(1e-30))  # what rounding added
    return left.reshape(perturbation.shape) * perturbation.sign()


def into_reach(points: Tensor, centres: Tensor, budget: float, norm: Norm) -> Tensor:
    """Points, pulled into the ball around `centres` and into the unit box.

    Cutting to a box that holds the centre only shortens each coordinate's perturbation: the point stays in the ball.
    """
    return (centres + project(points - centres, budget, norm)).clamp(0, 1)


def uniform(like: Tensor, budget: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """A perturbation drawn uniformly from the ball, for each item of `like`."""
    if norm == "linf":
        unit = torch.rand(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
        return (2 * unit - 1).to(like.device) * budget
    if norm == "l1":
        return uniform_l1(like, budget, generator).to(like.device)
    direction = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    share = torch.rand(len(like), generator=generator, device=generator.device, dtype=like.dtype)
    radius = budget * share ** (1 / like[0].numel())  # the volume within radius r grows as r^features
    return (steepest(direction, norm) * per_item(radius, direction)).to(like.device)


def uniform_l1(like: Tensor, budget: float, generator: torch.Generator) -> Tensor:
    """Exponential draws over their sum are uniform on a simplex; one draw more than features fills the inside."""
    features = like[0].numel()
    draws = torch.rand((len(like), features + 1), generator=generator, device=generator.device, dtype=like.dtype)
    draws = -torch.log1p(-draws)
    coin = torch.rand((len(like), features), generator=generator, device=generator.device, dtype=like.dtype)
    share = draws[:, :-1] / draws.sum(dim=1, keepdim=True)
    return (budget * share * torch.where(coin < 0.5, -1.0, 1.0)).reshape(like.shape)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The perturbation of size one that a gradient climbs fastest along; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    if norm == "l1":
        flat = gradient.flatten(1)
        place = flat.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, place, flat.gather(1, place).sign()).reshape(gradient.shape)
    # Dividing by the largest entry first: squares of tiny gradients would underflow to a length of zero.
    largest = per_item(sizes(gradient, "linf"), gradient)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / per_item(sizes(scaled, norm), scaled).clamp_min(
        0.5
    )  # of one entry of size one: at least one, or zero


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """Values [item], shaped so that they broadcast over the items of `like`."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
