"""Ball of allowed perturbations: measure, project, draw, and the steepest step in a norm.

Rule 1: projecting twice is projecting once, what is inside comes back bit for bit, what comes out is within budget (L2:
but for a millionth of it), and L2 keeps the direction.
Every function flattens an item: vectors [item, feature] and images [item, channel, height, width] are alike. A budget
is one number for all items, or a tensor [item].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from guard.offline.data.norms import Norm

Size: TypeAlias = float | Tensor  # of a ball: one for all items, or one for each [item]
ORDERS: Mapping[Norm, float] = {"linf": torch.inf, "l2": 2, "l1": 1}
ROUNDING_SHARE = 1e-6  # of the budget: what rounding may add, so that a projected perturbation counts as inside


def sizes(perturbation: Tensor, norm: Norm) -> Tensor:
    """Return the size of each item's perturbation in a norm [item]."""
    found: Tensor = torch.linalg.vector_norm(perturbation.flatten(1), ord=ORDERS[norm], dim=1)
    return found


def project(perturbation: Tensor, budget: Size, norm: Norm) -> Tensor:
    """Project each perturbation to the nearest one of at most `budget`."""
    most = spread(budget, perturbation)
    if norm == "linf":
        return perturbation.clamp(-most, most)  # type: ignore[arg-type]
    size = per_item(sizes(perturbation, norm), perturbation)
    nearest = onto_l1(perturbation, budget) if norm == "l1" else perturbation * (most / size.clamp_min(1e-30))
    return torch.where(size > most * (1 + ROUNDING_SHARE), nearest, perturbation)


def onto_l1(perturbation: Tensor, budget: Size, room: Tensor | None = None) -> Tensor:
    """Return the nearest perturbation of size `budget` with no entry over its `room` (None: no limit).

    All amounts shrink by one number an item and stay between zero and their room. What is left is piecewise linear in
    that number: each entry begins to count at its own amount, and is full where its amount exceeds its room by as much.

    Source: Duchi et al. 2008, "Efficient projections onto the l1-ball", figure 1; with a box Croce & Hein 2021,
    arXiv:2103.01208, proposition 2.1.
    """
    amounts = perturbation.flatten(1).abs().double()
    whole = spread(budget, amounts)
    rooms = torch.full_like(amounts, torch.inf) if room is None else room.flatten(1).double()
    shrinks = torch.cat([amounts, amounts - rooms], dim=1).clamp_min(0)
    shrinks, order = shrinks.sort(dim=1, descending=True)
    counting = torch.where(order < amounts.shape[1], 1.0, -1.0).double().cumsum(dim=1)
    gained = counting[:, :-1] * (shrinks[:, :-1] - shrinks[:, 1:])
    left = torch.cat([torch.zeros_like(gained[:, :1]), gained], dim=1).cumsum(dim=1)  # at each of these numbers
    place = (left < whole).sum(dim=1, keepdim=True).clamp(1, left.shape[1] - 1)  # the first that leaves too much
    spare = (whole - left.gather(1, place - 1)) / counting.gather(1, place - 1).clamp_min(1)
    shrink = (shrinks.gather(1, place - 1) - spare).clamp_min(0)
    nearest = (amounts - shrink).clamp_min(0).minimum(rooms)
    nearest = nearest * (whole / nearest.sum(dim=1, keepdim=True).clamp_min(whole))  # what rounding added
    return nearest.to(perturbation.dtype).reshape(perturbation.shape) * perturbation.sign()


def into_reach(points: Tensor, centres: Tensor, budget: Size, norm: Norm) -> Tensor:
    """Pull points into the ball around `centres` and into the unit box; in L-infinity and L1 to the nearest there.

    Cutting to a box that holds the centre only shortens each coordinate's perturbation: the point stays in the ball.
    """
    perturbation = points - centres
    if norm == "l1":  # what a box cuts off may be spent elsewhere, and in L1 that is most of it
        room = room_of(centres, perturbation)
        cut = perturbation.clamp(-room, room)
        nearest = onto_l1(perturbation, budget, room)
        inside = per_item(sizes(cut, norm) <= of_dtype(budget, cut) * (1 + ROUNDING_SHARE), cut)
        return (centres + torch.where(inside, cut, nearest)).clamp(0, 1)
    return (centres + project(perturbation, budget, norm)).clamp(0, 1)


def room_of(points: Tensor, direction: Tensor) -> Tensor:
    """Return how far each coordinate can go in its direction before it leaves the unit box."""
    return torch.where(direction > 0, 1 - points, points).clamp_min(0)


def furthest(points: Tensor, gradient: Tensor, budget: Size, norm: Norm) -> Tensor:
    """Return where in ball and box a linear function of this gradient is greatest; in L2 the box is cut to afterwards.

    In L1 that is to fill the room of one coordinate after another, the steepest first.
    """
    if norm != "l1":
        return into_reach(points + spread(budget, points) * steepest(gradient, norm), points, budget, norm)
    flat, room = gradient.flatten(1), room_of(points, gradient).flatten(1)
    order = flat.abs().argsort(dim=1, descending=True, stable=True)
    room = torch.where(flat == 0, 0, room).gather(1, order)
    spent = (
        (spread(budget, room.double()) - (room.double().cumsum(dim=1) - room)).to(room.dtype).clamp_min(0).minimum(room)
    )
    step = torch.zeros_like(flat).scatter(1, order, spent) * flat.sign()
    return (points + step.reshape(points.shape)).clamp(0, 1)


def uniform(like: Tensor, budget: Size, norm: Norm, generator: torch.Generator) -> Tensor:
    """Draw a perturbation uniformly from the ball, for each item of `like`."""
    if norm == "linf":
        unit = torch.rand(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
        return (2 * unit - 1).to(like.device) * spread(budget, like)
    if norm == "l1":
        return uniform_l1(like, budget, generator).to(like.device)
    direction = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    share = torch.rand(len(like), generator=generator, device=generator.device, dtype=like.dtype)
    radius = of_dtype(budget, share) * share ** (1 / like[0].numel())  # the volume within radius r grows as r^features
    return (steepest(direction, norm) * per_item(radius, direction)).to(like.device)


def uniform_l1(like: Tensor, budget: Size, generator: torch.Generator) -> Tensor:
    """Draw a perturbation uniformly from the L1 ball, for each item of `like`.

    Exponential draws over their sum are uniform on a simplex; one draw more than features fills the inside.
    """
    features = like[0].numel()
    draws = torch.rand((len(like), features + 1), generator=generator, device=generator.device, dtype=like.dtype)
    draws = -torch.log1p(-draws)
    coin = torch.rand((len(like), features), generator=generator, device=generator.device, dtype=like.dtype)
    share = draws[:, :-1] / draws.sum(dim=1, keepdim=True)
    return (spread(budget, share) * share * torch.where(coin < 0.5, -1.0, 1.0)).reshape(like.shape)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the perturbation of size one that a gradient climbs fastest along; zero where the gradient is zero."""
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
    """Reshape values [item] so that they broadcast over the items of `like`."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def of_dtype(size: Size, like: Tensor) -> Size:
    """Return a size [item] in the precision and on the device of `like`; one for all items as it is."""
    return size.to(like) if isinstance(size, Tensor) else size


def spread(size: Size, like: Tensor) -> Size:
    """Return a size so that it broadcasts over the items of `like`, in its precision."""
    return per_item(size.to(like), like) if isinstance(size, Tensor) else size


def part_of(size: Size, items: Tensor) -> Size:
    """Return the sizes of some items; one for all of them as it is."""
    return size[items.to(size.device)] if isinstance(size, Tensor) else size
