"""Networks without branches: AlexNet, VGG, SqueezeNet."""

from __future__ import annotations

from torch import nn

from tests.zoo.parts import Joined


def alexnet(classes: int = 10) -> nn.Module:
    """Local response normalisation, overlapping pools, dropout (Krizhevsky et al. 2012)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(inplace=True), nn.LocalResponseNorm(5, alpha=1e-2, k=2.0),
        nn.MaxPool2d(3, 2), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(inplace=True),
        nn.LocalResponseNorm(4, alpha=1e-1, beta=0.5),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(), nn.Linear(24 * 9, 32), nn.ReLU(inplace=True),
        nn.Linear(32, classes),
    )  # fmt: skip


def vgg(classes: int = 10) -> nn.Module:
    """An adaptive pool to 7x7 from 8x8, whose windows overlap (arXiv:1409.1556 as torchvision has it)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2),
        nn.AdaptiveAvgPool2d((7, 7)), nn.Flatten(), nn.Linear(12 * 49, 24), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(24, classes),
    )  # fmt: skip


def squeezenet(classes: int = 10) -> nn.Module:
    """Fire modules, a pool with ceil_mode, a convolution for a head (arXiv:1602.07360)."""
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True),
        *fire(12, 4, 8), *fire(16, 4, 8), nn.Dropout(), nn.Conv2d(16, classes, 1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1),
    )  # fmt: skip
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # the last answer is rectified too: with torch's weights all classes die
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.constant_(layer.bias, 0.1)
    return network


def fire(before: int, narrow: int, wide: int) -> tuple[nn.Module, ...]:
    branches = Joined(nn.Conv2d(narrow, wide, 1), nn.Conv2d(narrow, wide, 3, padding=1))
    return nn.Conv2d(before, narrow, 1), nn.ReLU(inplace=True), branches, nn.ReLU(inplace=True)
