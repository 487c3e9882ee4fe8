"""The ball of allowed perturbations: measure, project, draw, and the steepest step in a norm.

Rule 1: projecting twice is projecting once, what is inside comes back bit for bit, what comes out is within budget
(L2: but for a millionth of it), and L2 keeps the direction.
Every function flattens an item: vectors [item, feature] and images [item, channel, height, width] are alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guard.offline.attacks.attack import Norm

SLACK = 1e-6  # of the budget: what rounding may add, so that a projected perturbation counts as inside


def sizes(perturbation: Tensor, norm: Norm) -> Tensor:
    """How large each item's perturbation is, [item]."""
    flat = perturbation.flatten(1)
    return flat.abs().amax(dim=1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)


def project(perturbation: Tensor, budget: float, norm: Norm) -> Tensor:
    """The nearest perturbation of at most `budget`."""
    if norm == "linf":
        return perturbation.clamp(-budget, budget)
    size = per_item(sizes(perturbation, norm), perturbation)
    return torch.where(size > budget * (1 + SLACK), perturbation * (budget / size.clamp_min(1e-30)), perturbation)


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
    direction = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    share = torch.rand(len(like), generator=generator, device=generator.device, dtype=like.dtype)
    radius = budget * share ** (1 / like[0].numel())  # the volume within radius r grows as r^features
    return (steepest(direction, norm) * per_item(radius, direction)).to(like.device)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The perturbation of size one that a gradient climbs fastest along; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    # Dividing by the largest entry first: squares of tiny gradients would underflow to a length of zero.
    largest = per_item(sizes(gradient, "linf"), gradient)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / per_item(sizes(scaled, norm), scaled).clamp_min(
        0.5
    )  # of one entry of size one: at least one, or zero


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """Values [item], shaped so that they broadcast over the items of `like`."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
