"""Layers that several families of the zoo share."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from tests.networks import frozen


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose parameters are random but the same every time, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return frozen(build())


def convolved(
    before: int, after: int, kernel: int = 3, stride: int = 1, groups: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """A convolution, its normalisation, its activation."""
    layer = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after), activation())


def pooled_head(width: int, classes: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)


class Skip(nn.Module):
    """A path around which its input goes as it is, or through a layer that fits it."""

    def __init__(self, path: nn.Module, skip: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.path, self.skip, self.after = path, skip or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.after(self.path(x) + self.skip(x)))


class Joined(nn.Module):
    """Branches side by side, concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Squeeze(nn.Module):
    """Squeeze-and-excitation: each channel is weighed by what all channels are on average (arXiv:1709.01507)."""

    def __init__(self, width: int, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width // 4, 1), nn.ReLU(), nn.Conv2d(width // 4, width, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x * self.gate(x))


class ChannelNorm(nn.Module):
    """A layer normalisation over the channels of an image, by way of channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def feed_forward(width: int, factor: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, factor * width), nn.GELU(), nn.Linear(factor * width, width))
