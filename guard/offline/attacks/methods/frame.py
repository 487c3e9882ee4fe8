"""Adversarial frame: the border of an image, the ends of a series or a vector, are replaced; the middle stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text
from guard.offline.attacks.attack import whole as whole_number
from guard.offline.attacks.informed import untaught
from guard.offline.attacks.methods.patch import cover, share
from guard.offline.attacks.methods.pgd import keep, rank
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import Size
from guard.offline.attacks.objective import LogOdds
from guard.offline.attacks.ranges import Amount, as_learned, drawn_once, settled, take_ranges
from guard.offline.attacks.shared_perturbation import Pace, class_number, climb_shared
from guard.offline.data.norms import Measure
from guard.offline.networks.weights import Knowledge

FIRST_STEP = 0.1  # size of a step in unit space


def border(inputs: Tensor, budget: Size, attack: object) -> Tensor:
    """Return which places [1, 1, height, width], [1, 1, time] or [1, feature] the frame takes: the outermost ones.

    As many as `budget` covers, in whole rings but for the last, which is filled row by row; of a budget for each item
    [item] the places of each. Raises ConfigError where not even one place is covered.
    """
    if isinstance(budget, Tensor):
        return torch.cat([border(inputs, one, attack) for one in budget.tolist()])
    count = cover(inputs, budget, attack)
    sizes = inputs.shape[2:] or inputs.shape[1:]
    ends = [torch.minimum(places, places.flip(0)) for places in (torch.arange(size) for size in sizes)]
    depth = torch.minimum(ends[0][:, None], ends[1][None]) if len(ends) == 2 else ends[0]
    chosen = torch.zeros(depth.numel(), dtype=torch.bool)
    chosen[depth.flatten().argsort(stable=True)[:count]] = True
    return chosen.reshape(1, *(1,) * (inputs.ndim - 1 - depth.ndim), *depth.shape).to(inputs.device)


def frame(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    taken: Tensor,
    *,
    steps: int,
    target: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Climb a frame of its own for each item by signed steps; return each item's best point, as in PGD.

    The content starts at random with `generator`, without one as it is. Costs steps + 1 forwards and steps backwards.

    Source: Zajac et al. 2019, arXiv:1810.07481, whose frame is universal and lies around the image, not on it.
    """
    targets = None if target is None else torch.full_like(labels, target)
    points = inputs
    if generator is not None:
        draws = torch.rand(inputs.shape, generator=generator, device=generator.device, dtype=inputs.dtype)
        points = torch.where(taken, draws.to(inputs.device), inputs)
    best, best_rank = inputs, torch.full((len(inputs),), -torch.inf, dtype=torch.float64, device=inputs.device)
    for _ in range(steps):
        logits, _, gradient = model.value_and_gradient(points, LogOdds(labels, targets))
        best, best_rank = keep(best, best_rank, points, rank(logits, labels, targets))
        points = torch.where(taken, (points + FIRST_STEP * gradient.sign()).clamp(0, 1), inputs)
    with torch.no_grad():
        logits = model(points)
    return keep(best, best_rank, points, rank(logits, labels, targets))[0]


@dataclass(frozen=True, repr=False)
class Frame:
    """Adversarial frame as a value, with a frame for each item: untargeted, or towards one class."""

    name: ClassVar[str] = "frame"
    family: ClassVar[Family] = Family.PATCH
    norm: ClassVar[Measure] = "l0"
    traits: ClassVar[Traits] = Traits(ranges=("budget",), covers=True)

    budget: Amount  # share of an item's pixels, steps or features that it covers at most
    steps: int = 20
    target: int | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        take_ranges(self)
        share(self, "budget")
        whole_number(self, "steps")
        class_number(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return frame(
            model,
            inputs,
            labels,
            border(inputs, settled(self.budget), self),
            steps=self.steps,
            target=self.target,
            generator=generator if self.random_start else None,
        )

    def __repr__(self) -> str:
        return call_text(self)


@dataclass(frozen=True, repr=False)
class UniversalFrame:
    """Adversarial frame as a value, with one frame for all items: untargeted, or towards one class."""

    name: ClassVar[str] = "universal_frame"
    family: ClassVar[Family] = Family.PATCH
    norm: ClassVar[Measure] = "l0"
    traits: ClassVar[Traits] = Traits(learns=True, ranges=("budget",), covers=True)

    budget: Amount  # share of an item's pixels, steps or features that it covers at most
    epochs: int = 5
    batch: int = 8
    learning_items: int = 256
    target: int | None = None

    def __post_init__(self) -> None:
        take_ranges(self)
        share(self, "budget")
        whole_number(self, "epochs", "batch", "learning_items")
        class_number(self)

    def learn(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        own, known = drawn_once(self, generator)
        taken = border(inputs, settled(own.budget), self)
        start = torch.rand(inputs[:1].shape, generator=generator, device=generator.device).to(inputs)
        found = climb_shared(
            model,
            inputs,
            labels,
            start,
            lambda content, items: torch.where(taken, content, items),
            lambda content, direction, length: (content + length * FIRST_STEP * direction.sign()).clamp(0, 1),
            pace=Pace(self.epochs, self.batch),
            target=self.target,
            generator=generator,
        )
        return {"content": found, **known}

    def informed(
        self, knowledge: Knowledge, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Put the same frame on every item; costs no pass."""
        del model, labels, generator
        taken = border(inputs, settled(as_learned(self, knowledge).budget), self)
        return torch.where(taken, knowledge["content"].to(inputs), inputs)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del model, inputs, labels, generator  # there is nothing yet to attack with
        raise untaught(self)

    def __repr__(self) -> str:
        return call_text(self)
