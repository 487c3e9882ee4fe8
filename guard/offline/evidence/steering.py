"""Which neurons matter for which class, and how hard they are pulled: a value, and what it does to a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

SMALL = 1e-6  # keeps deviations from zero: a layer whose critical neurons all say the same is steered by their mean


@dataclass(frozen=True)
class Strength:
    """How hard. The published values move a small network hardly at all: they are fitted.

    Source: Tao et al. 2018, arXiv:1810.11580, section 3.3; `papers.md` has the constants of their code.
    """

    weaken: float = 100.0  # a neuron one deviation above the critical ones' mean keeps exp(-1/weaken) of itself
    strengthen: float = 1.15  # critical neurons are multiplied by this, and by up to 1 more the farther from the least
    reach: float = 60.0  # deviations from the least critical neuron that count as far


@dataclass(frozen=True)
class Critical:
    """Which channels of one tap are critical for which class; compared by content."""

    classes: int
    channels: int
    bits: bytes

    @staticmethod
    def of(mask: Tensor) -> Critical:
        """From a mask [class, channel]."""
        packed = np.packbits(mask.bool().numpy())
        return Critical(len(mask), mask.shape[1], packed.tobytes())

    def mask(self) -> Tensor:
        """[class, channel]: 1 where critical."""
        bits = np.unpackbits(np.frombuffer(self.bits, dtype=np.uint8), count=self.classes * self.channels)
        return torch.from_numpy(bits.reshape(self.classes, self.channels)).float()

    def __repr__(self) -> str:
        return f"Critical({int(self.mask().sum())} of {self.classes} x {self.channels})"


@dataclass(frozen=True)
class Steering:
    """Critical channels at each steered tap, and how hard they are pulled."""

    taps: tuple[str, ...]  # in the order of the forward pass
    critical: tuple[Critical, ...]  # one a tap
    strength: Strength = Strength()

    def masks(self) -> Mapping[str, Tensor]:
        """Of each tap [class, channel]: 1 where critical."""
        return {tap: critical.mask() for tap, critical in zip(self.taps, self.critical, strict=True)}


class Steer(nn.Module):
    """Pulls one layer towards the class that the model named."""

    def __init__(self, mask: Tensor, strength: Strength) -> None:
        super().__init__()
        self.register_buffer("mask", mask)  # [class, channel]
        self.mask: Tensor
        self.strength = strength

    def forward(self, latent: Tensor, named: Tensor) -> Tensor:
        """Layer [item, channel, ...] and the class named [item, class], one-hot -> the steered layer."""
        value = latent.flatten(2).mean(dim=2) if latent.ndim > 2 else latent  # [item, channel]
        factor = self.factor(value, named @ self.mask)
        return latent * factor.reshape(*factor.shape, *[1] * (latent.ndim - 2))

    def factor(self, value: Tensor, critical: Tensor) -> Tensor:
        """What each channel [item, channel] is multiplied by. Mean and deviation are the critical channels' own."""
        strength, count = self.strength, critical.sum(dim=1, keepdim=True).clamp_min(1.0)
        mean = (value * critical).sum(dim=1, keepdim=True) / count
        deviation = (((value - mean).square() * critical).sum(dim=1, keepdim=True) / count + SMALL).sqrt()
        least = (value + (1.0 - critical) * (value.amax(dim=1, keepdim=True) - value)).amin(dim=1, keepdim=True)
        above = ((value - mean) / deviation).clamp_min(0.0)
        away = (value - least).abs() / deviation
        weakened = torch.exp(-above / strength.weaken)
        strengthened = 1.0 + strength.strengthen - torch.exp(-away / strength.reach)
        return critical * strengthened + (1.0 - critical) * weakened
