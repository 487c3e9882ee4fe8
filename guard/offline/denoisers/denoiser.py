"""Seam of every denoiser: a map from images to cleaned images."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from guard.offline.denoisers.stand_in import StandIn


class Denoiser(Protocol):
    """Map from unit-space images [item, ...] to cleaned ones of the same shape; a frozen, printable value."""

    @property
    def name(self) -> str: ...

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        """Surrogates that an attacker differentiates in place of its steps; none where its own derivative will do."""
        ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def __hash__(self) -> int: ...
