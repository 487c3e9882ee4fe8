"""Spatial attack: an image is shifted and turned until the model is most wrong about it; answers alone are asked for.

Rule 1: a turn is rigid in pixels, whatever the image's sides are.
Rule 2: what is drawn does not depend on how much is drawn after it, so that more samples are never worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from guard.errors import ConfigError
from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.methods.pgd import keep, rank
from guard.offline.attacks.model import Model
from guard.offline.data.input_kind import kind_like
from guard.offline.data.kind_names import ONLY_IMAGES
from guard.offline.data.norms import Measure

Border = Literal["zeros", "edge", "reflection"]
PADDING = {"zeros": "zeros", "edge": "border", "reflection": "reflection"}  # as torch spells them


@dataclass(frozen=True, eq=False)
class Moves:
    """A shift and then a turn about the middle, the same for all items [1] or each item's own [item].

    They say where a pixel is read: it is turned clockwise by `turn` degrees about the middle, and goes on by `right`
    and `down`, shares of the way from the first pixel to the last. What is seen goes the other way.
    """

    turn: Tensor
    right: Tensor
    down: Tensor


def moved(images: Tensor, moves: Moves, border: Border) -> Tensor:
    """Return images [item, channel, height, width] after the moves, by bilinear interpolation."""
    height, width = images.shape[2:]
    angle = moves.turn.double().deg2rad()
    right, down = moves.right.double() * (width - 1), moves.down.double() * (height - 1)  # in pixels
    # Where to read, in units of half a side from the middle.
    column = torch.stack([angle.cos(), -angle.sin() * height / width, 2 * right / width], dim=1)
    row = torch.stack([angle.sin() * width / height, angle.cos(), 2 * down / height], dim=1)
    where = torch.stack([column, row], dim=1).expand(len(images), 2, 3).to(images)
    places = affine_grid(where, list(images.shape), align_corners=False)
    return grid_sample(images, places, padding_mode=PADDING[border], align_corners=False).clamp(0, 1)


def evenly(limit: float, count: int) -> list[float]:
    """Return `count` numbers from -limit to limit; one alone is zero."""
    return [limit * (2 * place / (count - 1) - 1) for place in range(count)] if count > 1 else [0.0]


def grid(rotation: float, translation: float, rotations: int, translations: int) -> Iterator[Moves]:
    """Return the moves of the grid, all items alike."""
    shifts = evenly(translation, translations)
    for move in product(evenly(rotation, rotations), shifts, shifts):
        yield Moves(*torch.tensor(move, dtype=torch.float64)[:, None])


def drawn(rotation: float, translation: float, samples: int, items: int, generator: torch.Generator) -> Iterator[Moves]:
    """Draw moves evenly within the limits, each item its own."""
    limits = torch.tensor([[rotation], [translation], [translation]], dtype=torch.float64)
    for _ in range(samples):
        draws = torch.rand((3, items), generator=generator, device=generator.device, dtype=torch.float64).cpu()
        yield Moves(*(limits * (2 * draws - 1)))


def spatial(model: Model, inputs: Tensor, labels: Tensor, *, moves: Iterable[Moves], border: Border) -> Tensor:
    """Return each image after that of the moves which the model is most wrong about, ranked as PGD ranks points.

    Costs a forward a move. Images [item, channel, height, width] alone.

    Source: Engstrom et al. 2019, arXiv:1712.02779, grid search and worst-of-k; their first-order search, which they
    found weaker, is left out. Theirs turns before it shifts; ours shifts first, as foolbox does.
    """
    if kind_like(inputs).name not in Spatial.traits.kinds:
        raise ValueError(f"spatial wants images [item, channel, height, width]; got {tuple(inputs.shape)}")
    best, best_rank = inputs, torch.full((len(inputs),), -torch.inf, dtype=torch.float64, device=inputs.device)
    with torch.no_grad():
        for one in moves:
            points = moved(inputs, one, border)
            best, best_rank = keep(best, best_rank, points, rank(model(points), labels, None))
    return best


@dataclass(frozen=True, repr=False)
class Spatial:
    """Spatial attack as a value: a shift and a turn, which no norm measures.

    What comes in from outside is black, as published: `border = "zeros"`. Where black corners would give an image away,
    "reflection" mirrors it at its sides and "edge" goes on with its outermost pixels.
    """

    name: ClassVar[str] = "spatial"
    family: ClassVar[Family] = Family.SPATIAL
    norm: ClassVar[Measure] = "none"
    budget: ClassVar[float | None] = None
    traits: ClassVar[Traits] = Traits(asks="answers", kinds=ONLY_IMAGES)

    rotation: float = 30.0  # degrees, either way
    translation: float = 0.1  # share of each side, from the first pixel to the last, either way
    rotations: int = 7  # angles of the grid; one alone is no turn
    translations: int = 5  # shifts of the grid along each side; one alone is no shift
    samples: int | None = None  # moves drawn for each image, in place of the grid
    border: Border = "zeros"

    def __post_init__(self) -> None:
        more_than_zero(self, "rotation", "translation")
        whole(self, "rotations", "translations", "samples")
        if self.border not in get_args(Border):
            wanted = ", ".join(get_args(Border))
            raise ConfigError(f"attack {self.name!r}: border = {self.border!r}; wanted one of {wanted}")

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        moves = (
            grid(self.rotation, self.translation, self.rotations, self.translations)
            if self.samples is None
            else drawn(self.rotation, self.translation, self.samples, len(inputs), generator)
        )
        return spatial(model, inputs, labels, moves=moves, border=self.border)

    def __repr__(self) -> str:
        return call_text(self)
