"""Attacks that change the answer and choose its explanation: the clean saliency map, or that map turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.model import Model
from guard.offline.attacks.saliency import Walk, likeness, saliency
from guard.offline.data.norms import Measure


def toward_map(
    model: Model, inputs: Tensor, labels: Tensor, target: Tensor, *, budget: float, steps: int, confidence: float
) -> Tensor:
    """Return the fooling point whose own map is most like `target` [item, place]; deterministic, on a torch module.

    Source: Zhang et al. 2020, arXiv:1812.00891 (ADV², both at once); Dombrowski et al. 2019, arXiv:1906.07983 (a target
    map; [109] of the survey). Instead of a weighted sum both gradients count at unit length, and the softplus that
    stands for ReLU is in the map's derivative alone, so that what is judged is the model itself.
    """
    return Walk("change", budget, steps, confidence)(model, inputs, labels, lambda found: 1 - likeness(found, target))


@dataclass(frozen=True, repr=False)
class MapKeeping:
    """Attack that changes the answer and keeps the clean item's saliency map."""

    name: ClassVar[str] = "map_keeping"
    family: ClassVar[Family] = Family.INTERPRETATION
    norm: ClassVar[Measure] = "linf"
    traits: ClassVar[Traits] = Traits(asks="curvature")

    budget: float
    steps: int = 30
    confidence: float = 1.0  # logits by which the wrong class is kept ahead while the map is worked on

    def __post_init__(self) -> None:
        more_than_zero(self, "budget", "confidence")
        whole(self, "steps")

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del generator  # nothing is drawn
        with torch.no_grad():
            _, clean = saliency(model, inputs)
        return toward_map(
            model, inputs, labels, clean, budget=self.budget, steps=self.steps, confidence=self.confidence
        )

    def __repr__(self) -> str:
        return call_text(self)


@dataclass(frozen=True, repr=False)
class MapFaking:
    """Attack that changes the answer and shows the clean item's map turned by 180 degrees.

    That map looks natural, and lies in the wrong place.
    """

    name: ClassVar[str] = "map_faking"
    family: ClassVar[Family] = Family.INTERPRETATION
    norm: ClassVar[Measure] = "linf"
    traits: ClassVar[Traits] = Traits(asks="curvature")

    budget: float
    steps: int = 30
    confidence: float = 1.0

    def __post_init__(self) -> None:
        more_than_zero(self, "budget", "confidence")
        whole(self, "steps")

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del generator  # nothing is drawn
        with torch.no_grad():
            _, clean = saliency(model, inputs)
        turned = clean.flip(1)  # rows and columns both, or a vector from its end
        return toward_map(
            model, inputs, labels, turned, budget=self.budget, steps=self.steps, confidence=self.confidence
        )

    def __repr__(self) -> str:
        return call_text(self)
