"""Fewer grey levels: what lies between them cannot carry a perturbation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BitDepth:
    """Round every value to `bits` bits.

    Source: Xu et al. 2018, arXiv:1704.01155, section III-A.
    """

    bits: int = 4

    @property
    def name(self) -> str:
        return "bit_depth"

    def __call__(self, images: Tensor) -> Tensor:
        levels: int = 2**self.bits - 1
        return round_through(images * levels) / levels


def round_through(values: Tensor) -> Tensor:
    """Round; an attacker who differentiates sees the identity (Athalye et al. 2018, arXiv:1802.00420, BPDA)."""
    if not values.requires_grad:
        return torch.round(values)
    return values + (torch.round(values) - values).detach()
