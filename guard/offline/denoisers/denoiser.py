"""The seam of every denoiser: a map from images to cleaned ones."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """A map from unit-space images [item, ...] to cleaned ones of the same shape; a frozen, printable value."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def __hash__(self) -> int: ...
