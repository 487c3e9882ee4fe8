"""Networks that mix places without attention: ConvNeXt, PoolFormer, MLP-Mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.parts import ChannelNorm, Skip, feed_forward


def convnext(classes: int = 10) -> nn.Module:
    """Depthwise 7x7, layer normalisation, a scale of its own for each channel (arXiv:2201.03545)."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 4, 4), ChannelNorm(12), Next(12), Next(12), ChannelNorm(12), nn.Conv2d(12, 16, 2, 2), Next(16),
        nn.AdaptiveAvgPool2d(1), ChannelNorm(16), nn.Flatten(1), nn.Linear(16, classes),
    )  # fmt: skip


class Next(nn.Module):
    """A ConvNeXt block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.layers = nn.LayerNorm(width), feed_forward(width, 4)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.0, width).reshape(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.layers(self.norm(self.filter(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x + self.scale * inner


def poolformer(classes: int = 10) -> nn.Module:
    """A pool for a mixer, group normalisation of one group (arXiv:2111.11418)."""

    def block(width: int) -> tuple[nn.Module, nn.Module]:
        layers = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))
        mix = nn.Sequential(nn.GroupNorm(1, width), Pooling())
        return Skip(mix), Skip(nn.Sequential(nn.GroupNorm(1, width), layers))

    return nn.Sequential(nn.Conv2d(3, 12, 7, 4, 2), *block(12), nn.Conv2d(12, 16, 3, 2, 1), *block(16), Tokens(),
                         nn.LayerNorm(16), Mean(), nn.Linear(16, classes))  # fmt: skip


class Pooling(nn.Module):
    """The average of a place's neighbourhood, less the place itself."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.pool(x)
        return mean - x


class Tokens(nn.Module):
    """Maps as a list of places: [item, channel, height, width] to [item, place, channel]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    """The mean over the places."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


def mlp_mixer(classes: int = 10) -> nn.Module:
    """Linear layers along the places, then along the features (arXiv:2105.01601)."""
    return nn.Sequential(nn.Conv2d(3, 16, 8, 8), Tokens(), Mixed(16, 16), Mixed(16, 16), nn.LayerNorm(16), Mean(),
                         nn.Linear(16, classes))  # fmt: skip


class Mixed(nn.Module):
    """A Mixer layer."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across, self.along = feed_forward(places), feed_forward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.first(x).transpose(1, 2)).transpose(1, 2)
        result: Tensor = x + self.along(self.second(x))
        return result
