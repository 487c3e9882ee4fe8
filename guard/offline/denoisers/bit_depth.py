"""Bit depth reduction: fewer grey levels, since what lies between them cannot carry a perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn


@dataclass(frozen=True)
class BitDepth:
    """Denoiser that rounds every value to `bits` bits.

    Source: Xu et al. 2018, arXiv:1704.01155, section III-A.
    """

    name: ClassVar[str] = "bit_depth"
    kinds: ClassVar[Kinds] = EVERY_KIND
    stand_ins: ClassVar[tuple[StandIn, ...]] = (
        StandIn("rounding to fewer grey levels", "the identity (straight-through)"),
    )

    bits: int = 4

    def __call__(self, images: Tensor) -> Tensor:
        levels: int = 2**self.bits - 1
        return round_through(images * levels) / levels


def round_through(values: Tensor) -> Tensor:
    """Round values, with the identity as derivative for attackers (Athalye et al. 2018, arXiv:1802.00420, BPDA)."""
    if not values.requires_grad:
        return torch.round(values)
    return values + (torch.round(values) - values).detach()
