"""Networks of residual blocks with full or grouped convolutions: ResNet, RegNet."""

from __future__ import annotations

from torch import nn

from tests.zoo.parts import Skip, Squeeze, convolved, pooled_head


def resnet(classes: int = 10) -> nn.Module:
    """A stem with a max-pool, basic and bottleneck blocks (arXiv:1512.03385)."""
    return nn.Sequential(
        convolved(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1), basic(8, 8), basic(8, 16, 2), bottleneck(16, 24, 2),
        *pooled_head(24, classes),
    )  # fmt: skip


def shortcut(before: int, after: int, stride: int) -> nn.Module | None:
    if before == after and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


def basic(before: int, after: int, stride: int = 1) -> nn.Module:
    path = nn.Sequential(convolved(before, after, 3, stride), convolved(after, after, 3, activation=nn.Identity))
    return Skip(path, shortcut(before, after, stride), nn.ReLU(inplace=True))


def bottleneck(before: int, after: int, stride: int = 1, groups: int = 1, *, squeeze: bool = False) -> nn.Module:
    middle = after // 2
    path = nn.Sequential(
        convolved(before, middle, 1),
        convolved(middle, middle, 3, stride, groups),
        Squeeze(middle) if squeeze else nn.Identity(),
        convolved(middle, after, 1, activation=nn.Identity),
    )
    return Skip(path, shortcut(before, after, stride), nn.ReLU(inplace=True))


def regnet(classes: int = 10) -> nn.Module:
    """Grouped bottlenecks with squeeze-and-excitation (RegNetY, arXiv:2003.13678)."""
    return nn.Sequential(
        convolved(3, 8, 3, 2), bottleneck(8, 16, 2, 2, squeeze=True), bottleneck(16, 16, 1, 2, squeeze=True),
        bottleneck(16, 32, 2, 4, squeeze=True), *pooled_head(32, classes),
    )  # fmt: skip
