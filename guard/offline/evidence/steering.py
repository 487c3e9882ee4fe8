"""Steering of neurons: which channels are critical for which class, and how strongly a layer is pulled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

# Keeps deviations from zero: a layer whose critical neurons are all equal is steered by their mean
MIN_DEVIATION = 1e-6


@dataclass(frozen=True)
class Strength:
    """Constants of the steering: fitted, since the published ones (the defaults) hardly move a small network.

    Source: Tao et al. 2018, arXiv:1810.11580, section 3.3.
    """

    weaken: float = 100.0  # a neuron one deviation above the critical ones' mean keeps exp(-1/weaken) of itself
    strengthen: float = 1.15  # critical neurons are multiplied by this, plus up to 1 more the farther from the least
    reach: float = 60.0  # deviations from the least critical neuron that count as far


@dataclass(frozen=True)
class Critical:
    """Critical channels of one tap for each class, packed so that values compare by content."""

    classes: int
    channels: int
    bits: bytes

    @staticmethod
    def of(mask: Tensor) -> Critical:
        """Pack a mask [class, channel], 1 where a channel is critical."""
        packed = np.packbits(mask.bool().numpy())
        return Critical(len(mask), mask.shape[1], packed.tobytes())

    def mask(self) -> Tensor:
        """Return the mask [class, channel]: 1 where a channel is critical."""
        bits = np.unpackbits(np.frombuffer(self.bits, dtype=np.uint8), count=self.classes * self.channels)
        return torch.from_numpy(bits.reshape(self.classes, self.channels)).float()

    def __repr__(self) -> str:
        return f"Critical({int(self.mask().sum())} of {self.classes} x {self.channels})"


@dataclass(frozen=True)
class Steering:
    """Critical channels at each steered tap, and how strongly they are pulled."""

    taps: tuple[str, ...]  # in the order of the forward pass
    critical: tuple[Critical, ...]  # one a tap
    strength: Strength = Strength()

    def masks(self) -> Mapping[str, Tensor]:
        """Return the mask of each tap [class, channel]: 1 where a channel is critical."""
        return {tap: critical.mask() for tap, critical in zip(self.taps, self.critical, strict=True)}


class Steer(nn.Module):
    """Module that steers one layer towards the class that the model predicts."""

    def __init__(self, mask: Tensor, strength: Strength) -> None:
        super().__init__()
        self.register_buffer("mask", mask)  # [class, channel]
        self.mask: Tensor
        self.strength = strength

    def forward(self, latent: Tensor, named: Tensor) -> Tensor:
        """Steer a layer [item, channel, ...] towards the predicted class [item, class], one-hot."""
        value = latent.flatten(2).mean(dim=2) if latent.ndim > 2 else latent  # [item, channel]
        factor = self.factor(value, named @ self.mask)
        return latent * factor.reshape(*factor.shape, *[1] * (latent.ndim - 2))

    def factor(self, value: Tensor, critical: Tensor) -> Tensor:
        """Return the factor of each channel [item, channel]; mean and deviation are those of the critical channels."""
        strength, count = self.strength, critical.sum(dim=1, keepdim=True).clamp_min(1.0)
        mean = (value * critical).sum(dim=1, keepdim=True) / count
        deviation = (((value - mean).square() * critical).sum(dim=1, keepdim=True) / count + MIN_DEVIATION).sqrt()
        least = (value + (1.0 - critical) * (value.amax(dim=1, keepdim=True) - value)).amin(dim=1, keepdim=True)
        above = ((value - mean) / deviation).clamp_min(0.0)
        away = (value - least).abs() / deviation
        weakened = torch.exp(-above / strength.weaken)
        strengthened = 1.0 + strength.strengthen - torch.exp(-away / strength.reach)
        return critical * strengthened + (1.0 - critical) * weakened
