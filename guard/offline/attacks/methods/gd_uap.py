"""GD-UAP: a universal perturbation learned without any data, by over-saturating the model's layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text, known_norm, more_than_zero
from guard.offline.attacks.attack import whole as whole_number
from guard.offline.attacks.informed import untaught
from guard.offline.attacks.layers import layers_of
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import into_reach, project, steepest, uniform
from guard.offline.attacks.ranges import Amount, as_learned, drawn_once, settled, take_ranges
from guard.offline.attacks.shared_perturbation import LAST_STEP_SHARE, MOMENTUM_SHARE
from guard.offline.data.norms import Norm
from guard.offline.networks.weights import Knowledge

INPUT_MEAN, INPUT_DEVIATION = 0.5, 0.25  # of the made-up inputs: all that is assumed of the data is its box
FIRST_STEP_SHARE = 0.3  # of the budget: the first step


def gd_uap(
    model: Model,
    like: Tensor,
    *,
    budget: float,
    norm: Norm,
    steps: int,
    batch: int,
    generator: torch.Generator,
    attack: object,
) -> Tensor:
    """Learn a perturbation [1, ...] for items shaped as `like` [item, ...], whose values it does not look at.

    Costs steps * batch forwards and backwards, whatever the number of items.

    Source: Mopuri et al. 2018, arXiv:1801.08092, eq. 3, with the range prior of section 3.3: inputs are made-up noise
    of the data's range, here of the unit box. Their stops on a set of real images are left out. The layers that count
    are all convolutions and linear layers.
    """
    perturbation = uniform(like[:1], budget, norm, generator)
    momentum = torch.zeros_like(perturbation)
    for number in range(steps):
        draws = torch.randn((batch, *like.shape[1:]), generator=generator, device=generator.device).to(like)
        with torch.enable_grad():
            watched = perturbation.detach().requires_grad_()
            value = saturation(
                model, ((INPUT_MEAN + INPUT_DEVIATION * draws).clamp(0, 1) + watched).clamp(0, 1), attack
            ).mean()
            (gradient,) = torch.autograd.grad(value, watched)
        momentum = MOMENTUM_SHARE * momentum + gradient / gradient.abs().mean().clamp_min(1e-30)
        length = budget * FIRST_STEP_SHARE * (1 - (1 - LAST_STEP_SHARE) * number / max(steps - 1, 1))
        perturbation = project(perturbation + length * steepest(momentum, norm), budget, norm)
    return perturbation


def saturation(model: Model, images: Tensor, attack: object) -> Tensor:
    """Return how strongly all layers respond: the sum of the logarithms of their outputs' lengths, [item]."""
    lengths = [
        torch.linalg.vector_norm(layer.flatten(1), dim=1).clamp_min(1e-30) for layer in layers_of(model, images, attack)
    ]
    return torch.stack([length.log() for length in lengths]).sum(dim=0)


@dataclass(frozen=True, repr=False)
class GdUap:
    """GD-UAP as a value. It needs the torch module of a model, because it looks at the layers."""

    name: ClassVar[str] = "gd_uap"
    family: ClassVar[Family] = Family.UNIVERSAL
    traits: ClassVar[Traits] = Traits(asks="layers", learns=True, ranges=("budget",))
    learning_items: ClassVar[int] = 1

    budget: Amount
    norm: Norm = "linf"
    steps: int = 60
    batch: int = 8

    def __post_init__(self) -> None:
        take_ranges(self)
        more_than_zero(self, "budget")
        whole_number(self, "steps", "batch")
        known_norm(self)

    def learn(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        """Learn the perturbation. Raises ConfigError for a model that shows no layers."""
        del labels
        own, known = drawn_once(self, generator)
        budget = settled(own.budget)
        found = gd_uap(
            model,
            inputs,
            budget=budget,
            norm=self.norm,
            steps=self.steps,
            batch=self.batch,
            generator=generator,
            attack=self,
        )
        return {"perturbation": found, **known}

    def informed(
        self, knowledge: Knowledge, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Add the shared perturbation to every item; costs no pass."""
        del model, labels, generator
        budget = settled(as_learned(self, knowledge).budget)
        return into_reach(inputs + knowledge["perturbation"].to(inputs), inputs, budget, self.norm)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del model, inputs, labels, generator  # there is nothing yet to attack with
        raise untaught(self)

    def __repr__(self) -> str:
        return call_text(self)
