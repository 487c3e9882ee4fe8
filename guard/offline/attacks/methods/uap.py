"""Universal adversarial perturbation: learned from some items, it fools the model on most others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.attack import Family, Traits, call_text, known_norm, more_than_zero
from guard.offline.attacks.attack import whole as whole_number
from guard.offline.attacks.informed import untaught
from guard.offline.attacks.methods.deepfool import deepfool
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import into_reach, project, steepest, uniform
from guard.offline.attacks.objective import gap
from guard.offline.attacks.ranges import Amount, as_learned, drawn_once, settled, take_ranges
from guard.offline.attacks.shared_perturbation import Pace, class_number, climb_shared
from guard.offline.data.norms import Norm
from guard.offline.networks.weights import Knowledge

Form = Literal["gradient", "deepfool"]
FOOLED_SHARE = 0.8  # of the items fooled: where the paper stops
DEEPFOOL_STEPS = 10  # steps of DeepFool for one item, as in the authors' code


def uap_by_gradient(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    norm: Norm,
    pace: Pace,
    target: int | None,
    generator: torch.Generator,
) -> Tensor:
    """Learn a perturbation [1, ...] within budget by stochastic gradients, from a random start, so that blocks differ.

    Source: Shafahi et al. 2020, arXiv:1811.11304; see `climb_shared`.
    """

    def step(perturbation: Tensor, direction: Tensor, length: float) -> Tensor:
        return project(perturbation + length * budget / 2 * steepest(direction, norm), budget, norm)

    start = uniform(inputs[:1], budget, norm, generator)
    return climb_shared(
        model,
        inputs,
        labels,
        start,
        lambda perturbation, items: (items + perturbation).clamp(0, 1),
        step,
        pace=pace,
        target=target,
        generator=generator,
    )


def uap_by_deepfool(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    norm: Norm,
    epochs: int,
    generator: torch.Generator,
) -> Tensor:
    """Learn a perturbation [1, ...] within budget: item by item, the shortest way that fools is added, and projected.

    Source: Moosavi-Dezfooli et al. 2017, arXiv:1610.08401, algorithm 1.
    """
    perturbation = torch.zeros_like(inputs[:1])
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator, device=generator.device).tolist()
        for place in order:
            point, label = (inputs[place : place + 1] + perturbation).clamp(0, 1), labels[place : place + 1]
            moved = deepfool(model, point, label, steps=DEEPFOOL_STEPS)
            perturbation = project(perturbation + moved - point, budget, norm)
        with torch.no_grad():
            fooled = gap(model((inputs + perturbation).clamp(0, 1)), labels) > 0
        if float(fooled.float().mean()) >= FOOLED_SHARE:
            break
    return perturbation


@dataclass(frozen=True, repr=False)
class Uap:
    """Universal adversarial perturbation as a value: untargeted, or towards one class."""

    name: ClassVar[str] = "uap"
    family: ClassVar[Family] = Family.UNIVERSAL
    traits: ClassVar[Traits] = Traits(learns=True, ranges=("budget",))

    budget: Amount
    norm: Norm = "linf"
    form: Form = "gradient"
    epochs: int = 10
    batch: int = 8
    learning_items: int = 256
    target: int | None = None

    def __post_init__(self) -> None:
        take_ranges(self)
        more_than_zero(self, "budget")
        whole_number(self, "epochs", "batch", "learning_items")
        known_norm(self)
        class_number(self)
        if self.form not in get_args(Form):
            raise ConfigError(f"attack 'uap': form = {self.form!r}; wanted one of {', '.join(get_args(Form))}")
        if self.form == "deepfool" and self.target is not None:
            raise ConfigError("attack 'uap': target goes with form = 'gradient'; DeepFool takes the nearest class")

    def learn(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        own, known = drawn_once(self, generator)
        budget = settled(own.budget)
        if self.form == "deepfool":
            found = uap_by_deepfool(
                model,
                inputs,
                labels,
                budget=budget,
                norm=self.norm,
                epochs=self.epochs,
                generator=generator,
            )
        else:
            found = uap_by_gradient(
                model,
                inputs,
                labels,
                budget=budget,
                norm=self.norm,
                pace=Pace(self.epochs, self.batch),
                target=self.target,
                generator=generator,
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
