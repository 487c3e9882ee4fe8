"""Attack on the explanation alone: the answer stays, and its saliency map moves elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.model import Model
from guard.offline.attacks.saliency import Distance, Walk, saliency
from guard.offline.data.norms import Measure
from guard.offline.data.planes import place_axes

Aim = Literal["top_places", "centre"]

OFFSET_PIXELS = 0.01  # pixels: measured from there, a centre that has not moved yet has a gradient


def map_only(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    steps: int,
    confidence: float,
    aim: Aim = "top_places",
    share: float = 0.1,
) -> Tensor:
    """Return the point of unchanged answer whose saliency map is moved furthest from the clean map.

    `top_places`: least mass on the `share` of places that the clean map has most on. `centre`: the centre of mass is
    furthest away; of images and series. An item that the model classifies wrongly comes back as it was. Deterministic,
    and needs a torch module.

    Source: Ghorbani et al. 2019, arXiv:1710.10547, algorithm 1 ([63] of the survey).
    """
    if aim == "centre" and not place_axes(inputs):
        raise ValueError(f"map_only: a centre is for images and series [item, channel, ...]; got {tuple(inputs.shape)}")
    with torch.no_grad():
        _, clean = saliency(model, inputs)
    distance = share_on(top_places(clean, share)) if aim == "top_places" else moved_from(clean, inputs.shape[2:])
    return Walk("keep", budget, steps, confidence)(model, inputs, labels, distance)


def top_places(maps: Tensor, share: float) -> Tensor:
    """Return the places [item, place] that maps have most on."""
    return maps.topk(max(1, round(share * maps.shape[1])), dim=1).indices


def overlap(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Return the share of the top places of two maps [item, place] that are the same, [item]."""
    ours = torch.zeros_like(one).scatter(1, top_places(one, share), 1.0)
    return ours.gather(1, top_places(other, share)).mean(dim=1)


def shares(maps: Tensor) -> Tensor:
    return maps / maps.sum(dim=1, keepdim=True).clamp_min(1e-30)


def share_on(places: Tensor) -> Distance:
    """Return a distance: how much of a map lies on these places."""
    return lambda maps: shares(maps).gather(1, places).sum(dim=1)


def centre(maps: Tensor, shape: torch.Size) -> Tensor:
    """Return row and column, or step, of the centre of a map's mass, [item, axis]."""
    sides = [torch.arange(size, device=maps.device, dtype=maps.dtype) for size in shape]
    return shares(maps) @ torch.stack([side.flatten() for side in torch.meshgrid(sides, indexing="ij")], dim=1)


def moved_from(clean: Tensor, shape: torch.Size) -> Distance:
    """Return a distance that falls as a map's centre moves away: minus the pixels from the clean map's centre."""
    before = centre(clean, shape) + OFFSET_PIXELS
    return lambda maps: -(centre(maps, shape) - before).square().sum(dim=1).sqrt()


@dataclass(frozen=True, repr=False)
class MapOnly:
    """Attack that moves the saliency map and keeps the answer."""

    name: ClassVar[str] = "map_only"
    family: ClassVar[Family] = Family.INTERPRETATION
    norm: ClassVar[Measure] = "linf"
    traits: ClassVar[Traits] = Traits(asks="curvature")

    budget: float
    steps: int = 30
    confidence: float = 0.5  # logits by which the answer is kept ahead
    aim: Aim = "top_places"
    share: float = 0.1

    def __post_init__(self) -> None:
        more_than_zero(self, "budget", "confidence", "share")
        whole(self, "steps")
        if self.share > 1:
            raise ConfigError(f"attack {self.name!r}: share = {self.share!r}; wanted at most 1")
        if self.aim not in get_args(Aim):
            raise ConfigError(f"attack {self.name!r}: aim = {self.aim!r}; wanted one of {', '.join(get_args(Aim))}")

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del generator  # nothing is drawn
        return map_only(
            model,
            inputs,
            labels,
            budget=self.budget,
            steps=self.steps,
            confidence=self.confidence,
            aim=self.aim,
            share=self.share,
        )

    def __repr__(self) -> str:
        return call_text(self)
