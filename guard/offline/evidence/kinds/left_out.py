"""Evidence from leaving out parts of the item, one after the other: the model's answers and layers without each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.evidence.kinds.variants import RowAnswers, RowNeed
from guard.offline.evidence.needs import Evidence, Need


@dataclass(frozen=True)
class Patches:
    """Parts that tile an item, each left out once: squares of an image, stretches of a series, runs of features.

    All channels of a place are left out together. An image has as many rows of squares as columns, the root of `count`,
    which is a square number; no item has more parts than places. For example 16 of 32 x 32 pixels: 4 x 4 squares of
    8 x 8.
    """

    count: int = 16
    value: float = 0.0  # in unit space, of what is left out

    def __post_init__(self) -> None:
        if self.count < 4 or math.isqrt(self.count) ** 2 != self.count:
            raise ConfigError(f"patches: count = {self.count!r}; wanted a square number from 4 on")

    def parts(self, shape: tuple[int, ...]) -> Tensor:
        """Return which values each part covers [part, 1, *places], 1 or 0, of items [channel, ...] or [feature]."""
        places = shape[1:] or shape
        across = math.isqrt(self.count) if len(places) == 2 else self.count
        cells = [torch.arange(size) * min(across, size) // size for size in places]
        sizes = [min(across, size) for size in places]
        covers = [torch.nn.functional.one_hot(cell, size).T.float() for cell, size in zip(cells, sizes, strict=True)]
        if len(places) == 2:
            down, along = covers
            return torch.einsum("ih,jw->ijhw", down, along).flatten(0, 1)[:, None, None]
        (line,) = covers
        return line[:, None, None] if shape[1:] else line[:, None]


@dataclass(frozen=True)
class PatchLogits(RowNeed):
    """Logits of the model [item, part, class] where a part of the item is left out, of each part in turn.

    Source: leave-one-out attribution, Li et al. 2016, arXiv:1612.08220, over patches as in Zeiler and Fergus 2014,
    arXiv:1311.2901, section 2.
    """

    patches: Patches = Patches()

    @property
    def rows_per_item(self) -> int:
        return self.patches.count

    def fixed(self, shape: tuple[int, ...]) -> Tensor:
        return self.patches.parts(shape)

    def variants(self, images: Tensor, fixed: Tensor | None, found: Evidence) -> Tensor:
        del found
        return images[None] if fixed is None else images * (1 - fixed) + self.patches.value * fixed

    def read(self, rows: RowAnswers) -> Tensor:
        return rows.logits.transpose(0, 1)


@dataclass(frozen=True)
class PatchLatent(RowNeed):
    """Output of a layer [item, part, feature] where a part of the item is left out, at the rows of `PatchLogits`."""

    tap: str
    patches: Patches = Patches()

    @property
    def rows_per_item(self) -> int:
        return 0

    @property
    def source(self) -> RowNeed:
        return PatchLogits(self.patches)

    @property
    def brings(self) -> tuple[Need, ...]:
        """The logits at the same rows, which it pays for."""
        return (PatchLogits(self.patches),)

    @property
    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def read(self, rows: RowAnswers) -> Tensor:
        return rows.latents[self.tap].transpose(0, 1)
