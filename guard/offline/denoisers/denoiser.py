"""Seam of every denoiser: a map from items to cleaned items."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from guard.offline.data.kind_names import Kinds
from guard.offline.denoisers.stand_in import StandIn


class Denoiser(Protocol):
    """Map from unit-space items [item, ...] to cleaned ones of the same shape; a frozen, printable value."""

    @property
    def name(self) -> str: ...

    @property
    def kinds(self) -> Kinds:
        """Kinds of input that it applies to."""
        ...

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        """Surrogates that an attacker differentiates in place of its steps; none where its own derivative will do."""
        ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def __hash__(self) -> int: ...
