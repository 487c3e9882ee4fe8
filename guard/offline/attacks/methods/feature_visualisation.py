"""Feature visualisation as a universal perturbation: what a class, or a neuron, looks for, added to every item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.informed import untaught
from guard.offline.attacks.layers import layers_of
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import into_reach, per_item, steepest
from guard.offline.attacks.objective import LogOdds, without
from guard.offline.attacks.shared_perturbation import LAST_STEP_SHARE, MOMENTUM_SHARE, class_number
from guard.offline.data.norms import Measure
from guard.offline.data.planes import neighbourhood_mean, place_axes
from guard.offline.networks.weights import Knowledge

BATCH_ITEMS = 32
BLURRED_VALUES = 3  # along each axis of places
CANDIDATE_CLASSES = 10  # classes that the easiest is chosen from
TRIAL_STEPS = 15  # steps that try out a class
MAX_LOG_ODDS = 5.0  # log-odds from which on an item adds no gradient

Climb: TypeAlias = Callable[[Tensor], Tensor]  # points [item, ...] -> direction of each, of length 1 or 0


def visualise(
    climb: Climb,
    canvases: Tensor,
    *,
    budget: float,
    steps: int,
    generator: torch.Generator,
    jitter: int = 1,
    blur: float = 0.25,
) -> Tensor:
    """Learn one L∞ perturbation [...] that moves canvases [item, ...] in the directions that `climb` gives.

    Each step climbs on a batch of canvases, shifted by up to `jitter` values each way; `blur` is how much of the
    gradient is replaced by its neighbours' mean. Both keep out patterns that one place alone reacts to. Vectors are
    neither shifted nor blurred. Costs steps * 32 forwards and backwards.

    Source: Olah et al. 2017, "Feature Visualization", section on regularisation (transformation robustness, frequency
    penalisation); as an attack: Liu et al. 2021, arXiv:2004.11488.
    """
    found, momentum = torch.zeros_like(canvases[0]), torch.zeros_like(canvases[0])
    for step in range(steps):
        order = torch.randperm(len(canvases), generator=generator, device=generator.device)[:BATCH_ITEMS]
        shift = torch.randint(-jitter, jitter + 1, (2,), generator=generator, device=generator.device).tolist()
        points = (canvases[order.to(canvases.device)] + found).clamp(0, 1)
        rise = blurred(rolled(climb(rolled(points, shift)), [-side for side in shift]), blur).mean(dim=0)
        momentum = MOMENTUM_SHARE * momentum + rise / rise.abs().mean().clamp_min(1e-30)
        stride = budget / 4 * (1 - (1 - LAST_STEP_SHARE) * step / max(steps - 1, 1))
        found = (found + stride * momentum.sign()).clamp(-budget, budget)
    return found


def towards_class(model: Model, target: int) -> Climb:
    """Return a climb up the target's log-odds, for points where it is not far enough ahead."""

    def climb(points: Tensor) -> Tensor:
        aims = torch.full((len(points),), target, device=points.device)
        _, odds, rise = model.value_and_gradient(points, LogOdds(aims, aims))
        return torch.where(per_item(odds < MAX_LOG_ODDS, rise), steepest(rise, "l2"), torch.zeros_like(rise))

    return climb


def towards_neuron(model: Model, neuron: int, attack: object) -> Climb:
    """Return a climb up the output of a neuron of the last layer before the logits, a channel's mean over places."""

    def climb(points: Tensor) -> Tensor:
        with torch.enable_grad():
            watched = points.detach().requires_grad_()
            (rise,) = torch.autograd.grad(answer_of(neuron, model, watched, attack).sum(), watched)
        return steepest(rise, "l2")

    return climb


def answer_of(neuron: int, model: Model, points: Tensor, attack: object) -> Tensor:
    """Return a neuron's output [item], before any activation. Raises ConfigError where there is no such neuron."""
    layers = layers_of(model, points, attack)
    if len(layers) < 2 or layers[-2].ndim < 2:
        raise ConfigError(f"{attack!r} looks at the layer before the logits, and this model has none")
    layer = layers[-2]
    if neuron >= layer.shape[1]:
        raise ConfigError(f"{attack!r}: the layer before the logits has {layer.shape[1]} neurons, counted from 0")
    return layer[:, neuron].flatten(1).mean(dim=1) if layer.ndim > 2 else layer[:, neuron]


def rolled(points: Tensor, shift: list[int]) -> Tensor:
    """Roll images by so many rows and columns, series by the steps that come first; vectors stay as they are."""
    axes = place_axes(points)
    return torch.roll(points, shift[: len(axes)], dims=axes) if axes else points


def blurred(points: Tensor, blur: float) -> Tensor:
    return (1 - blur) * points + blur * neighbourhood_mean(points, BLURRED_VALUES) if place_axes(points) else points


def easiest(model: Model, canvases: Tensor, *, budget: float, generator: torch.Generator) -> int:
    """Return the class, of those most often second, for which a short rehearsal changes the most answers."""
    named = answers(model, canvases)
    with torch.no_grad():
        second = without(model(canvases[:BATCH_ITEMS]), named[:BATCH_ITEMS]).argmax(dim=1)
    often, reached = second.bincount().argsort(descending=True)[:CANDIDATE_CLASSES], {}
    for target in (int(place) for place in often):
        climb = towards_class(model, target)
        found = visualise(climb, canvases, budget=budget, steps=TRIAL_STEPS, generator=generator)
        changed = answers(model, (canvases + found).clamp(0, 1)) != named
        reached[target] = int(changed.sum())
    return max(reached, key=lambda target: reached[target])


def answers(model: Model, points: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part).argmax(dim=1) for part in points.split(BATCH_ITEMS)])


def grey(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw canvases without data: the middle of the box, and noise."""
    noise = torch.randn((BATCH_ITEMS, *like.shape[1:]), generator=generator, device=generator.device, dtype=like.dtype)
    return (0.5 + 0.1 * noise).clamp(0, 1).to(like.device)


@dataclass(frozen=True, repr=False)
class FeatureVisualisation:
    """Feature visualisation as a value; aimed at the class easiest to reach, unless at a `target` or a `neuron`.

    A `neuron` is one of the last layer before the logits, a channel where that is a convolution. Without data
    (`data_free`) the perturbation is drawn on grey canvases: the model is shown no item.
    """

    name: ClassVar[str] = "feature_visualisation"
    family: ClassVar[Family] = Family.UNIVERSAL
    norm: ClassVar[Measure] = "linf"
    traits: ClassVar[Traits] = Traits(asks="layers", learns=True)

    budget: float
    target: int | None = None
    neuron: int | None = None
    steps: int = 100
    jitter: int = 1
    blur: float = 0.25
    data_free: bool = False
    learning_items: int = 256

    def __post_init__(self) -> None:
        more_than_zero(self, "budget", "blur")
        whole(self, "steps", "jitter", "learning_items")
        class_number(self)
        class_number(self, "neuron", of="neuron")
        if self.target is not None and self.neuron is not None:
            raise ConfigError(f"attack {self.name!r}: target and neuron are both given; wanted one of them, or none")
        if self.blur > 1:
            raise ConfigError(f"attack {self.name!r}: blur = {self.blur!r}; wanted a share of at most 1")
        if not isinstance(self.data_free, bool):
            raise ConfigError(f"attack {self.name!r}: data_free = {self.data_free!r}; wanted true or false")

    def learn(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        """Learn the perturbation. Raises ConfigError for a neuron that the model does not have, or does not show."""
        del labels  # what the items are does not matter, only what they are to become
        canvases = grey(inputs, generator) if self.data_free else inputs
        if self.neuron is not None:
            return {"perturbation": self.visualised(towards_neuron(model, self.neuron, self), canvases, generator)}
        target = self.target
        if target is None:
            target = easiest(model, canvases, budget=self.budget, generator=generator)
        found = self.visualised(towards_class(model, target), canvases, generator)
        return {"perturbation": found, "target": torch.tensor([target])}

    def visualised(self, climb: Climb, canvases: Tensor, generator: torch.Generator) -> Tensor:
        return (
            visualise(
                climb,
                canvases,
                budget=self.budget,
                steps=self.steps,
                generator=generator,
                jitter=self.jitter,
                blur=self.blur,
            )
            .float()
            .cpu()
        )

    def informed(
        self, knowledge: Knowledge, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        del model, labels, generator  # one perturbation for all items
        return into_reach(inputs + knowledge["perturbation"].to(inputs), inputs, self.budget, "linf")

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del model, inputs, labels, generator
        raise untaught(self)

    def __repr__(self) -> str:
        return call_text(self)
