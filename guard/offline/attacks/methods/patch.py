"""Adversarial patch: a square of pixels that fools the model wherever, however large and however turned it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from guard.axes import IMAGES
from guard.errors import ConfigError
from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero
from guard.offline.attacks.attack import whole as whole_number
from guard.offline.attacks.informed import untaught
from guard.offline.attacks.model import Model
from guard.offline.attacks.ranges import Amount, as_learned, drawn_once, ends, settled, take_ranges
from guard.offline.attacks.shared_perturbation import Pace, class_number, climb_shared
from guard.offline.data.input_kind import kind_like
from guard.offline.data.norms import Measure
from guard.offline.networks.weights import Knowledge

FIRST_STEP = 0.1  # of the unit box: the first step
PLANE_AXES = len(IMAGES.names) - 1  # what lies in a plane can be turned


@dataclass(frozen=True, eq=False)
class Spots:
    """Places of a patch on each item: centre and half a side in pixels, and its turn, each [item]."""

    row: Tensor
    column: Tensor
    half: Tensor
    turn: Tensor  # in radians


def covered(attack: object, budget: float, places: int) -> int:
    """Return how many of so many places a budget covers, a share of them. Raises ConfigError where it is none."""
    count = int(budget * places + 1e-6)
    if count < 1:
        raise ConfigError(f"{attack!r}: {budget:g} of {places} places is not one; wanted a larger budget")
    return min(count, places)


def cover(inputs: Tensor, budget: float, attack: object) -> int:
    """Return how many pixels, steps or features an item may lose. Raises ConfigError where it is none."""
    places = math.prod(inputs.shape[2:] or inputs.shape[1:])
    return covered(attack, budget, places)


def share(attack: object, *names: str) -> None:
    """Check that settings are above zero and at most 1. Raises ConfigError."""
    more_than_zero(attack, *names)
    for name in names:
        value = getattr(attack, name)
        if max(ends(value)) > 1:
            raise ConfigError(f"{getattr(attack, 'name', attack)}: {name} = {value!r}; wanted a share, at most 1")


def throw(inputs: Tensor, count: int, smallest: float, rotation: float, generator: torch.Generator) -> Spots:
    """Draw a place inside each item: turned by up to `rotation` degrees, its side `smallest` to 1 of the largest."""
    height, width = inputs.shape[2:]
    draws = torch.rand((4, len(inputs)), generator=generator, device=generator.device).to(inputs)
    half = math.sqrt(count) / 2 * (smallest + (1 - smallest) * draws[0])
    turn = math.radians(rotation) * (2 * draws[1] - 1)
    reach = half * (turn.cos().abs() + turn.sin().abs())  # from the centre to the outermost corner
    row, column = (
        torch.where(2 * reach <= size, reach + draw * (size - 2 * reach), torch.full_like(reach, size / 2))
        for size, draw in zip((height, width), draws[2:], strict=True)
    )
    return Spots(row, column, half, turn)


def put(patch: Tensor, inputs: Tensor, spots: Spots, count: int) -> Tensor:
    """Put the patch [1, channel, side, side] on items [item, channel, height, width], on at most `count` pixels.

    A pixel belongs to the patch where its middle does; of more than `count`, those nearest to its centre.
    """
    height, width = inputs.shape[2:]
    rows = torch.arange(height, device=inputs.device).to(inputs)[None, :, None] + 0.5 - spots.row[:, None, None]
    columns = torch.arange(width, device=inputs.device).to(inputs)[None, None, :] + 0.5 - spots.column[:, None, None]
    cos, sin, half = (value[:, None, None] for value in (spots.turn.cos(), spots.turn.sin(), spots.half))
    own = torch.stack([(cos * columns + sin * rows) / half, (cos * rows - sin * columns) / half], dim=3)
    away = own.abs().amax(dim=3).flatten(1)  # [item, pixel], up to 1 within the patch
    rank = away.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    covered = ((away <= 1) & (rank < count)).reshape(-1, 1, height, width)
    content = grid_sample(patch.expand(len(inputs), *patch.shape[1:]), own, padding_mode="border", align_corners=False)
    return torch.where(covered, content, inputs)


def put_on_lines(patch: Tensor, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Put a stretch [1, channel, step] on series [item, channel, time], at a place drawn for each item.

    Of a vector it is a block of features: [1, block] on [item, feature].
    """
    block, length = patch.shape[-1], inputs.shape[-1]
    draws = torch.rand(len(inputs), generator=generator, device=generator.device).to(inputs.device)
    first = (draws * (length - block + 1)).long()[:, None]
    place = torch.arange(length, device=inputs.device)[None] - first  # [item, step] within the stretch
    content = patch[0][..., place.clamp(0, block - 1)]  # [channel, item, step] or [item, step]
    covered = (place >= 0) & (place < block)
    shape = (len(inputs), *(1,) * (inputs.ndim - 2), length)
    return torch.where(covered.reshape(shape), content.movedim(-2, 0), inputs)


@dataclass(frozen=True, repr=False)
class Patch:
    """Adversarial patch as a value: untargeted, or towards one class.

    Learned over random places, sizes and turns (expectation over transformations), and thrown at random afterwards. Of
    a series it takes a stretch of time, of a vector a block of features, which is neither turned nor scaled.

    Source: Brown et al. 2017, arXiv:1712.09665, section 3. Theirs is a circle, trained by Adam for one class.
    """

    name: ClassVar[str] = "patch"
    family: ClassVar[Family] = Family.PATCH
    norm: ClassVar[Measure] = "l0"
    traits: ClassVar[Traits] = Traits(learns=True, ranges=("budget",), draws_for_batch=True, covers=True)

    budget: Amount  # share of an item's pixels, steps or features that it covers at most
    smallest: float = 0.8  # share of the largest side that a patch may shrink to
    rotation: float = 20.0  # degrees, either way
    epochs: int = 5
    batch: int = 8
    learning_items: int = 256
    target: int | None = None

    def __post_init__(self) -> None:
        take_ranges(self)
        share(self, "budget", "smallest")
        more_than_zero(self, "rotation")
        whole_number(self, "epochs", "batch", "learning_items")
        class_number(self)

    def place(self, patch: Tensor, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Put the patch on items at places that the generator draws; differentiable in the patch."""
        if kind_like(inputs).axes.places < PLANE_AXES:
            return put_on_lines(patch, inputs, generator)
        count = cover(inputs, settled(self.budget), self)
        return put(patch, inputs, throw(inputs, count, self.smallest, self.rotation, generator), count)

    def blank(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a patch of random content for items of this shape."""
        count = cover(inputs, settled(self.budget), self)
        side = math.ceil(math.sqrt(count))
        turned = kind_like(inputs).axes.places == PLANE_AXES
        shape = (1, inputs.shape[1], side, side) if turned else (1, *inputs.shape[1:-1], count)
        return torch.rand(shape, generator=generator, device=generator.device).to(inputs)

    def learn(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        own, known = drawn_once(self, generator)
        found = climb_shared(
            model,
            inputs,
            labels,
            own.blank(inputs, generator),
            lambda patch, items: own.place(patch, items, generator),
            lambda patch, direction, length: (patch + length * FIRST_STEP * direction.sign()).clamp(0, 1),
            pace=Pace(self.epochs, self.batch),
            target=self.target,
            generator=generator,
        )
        return {"patch": found, **known}

    def informed(
        self, knowledge: Knowledge, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Put the patch once on each item, at a random place; costs no pass."""
        del model, labels
        with torch.no_grad():
            return as_learned(self, knowledge).place(knowledge["patch"].to(inputs), inputs, generator)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del model, inputs, labels, generator  # there is nothing yet to attack with
        raise untaught(self)

    def __repr__(self) -> str:
        return call_text(self)
