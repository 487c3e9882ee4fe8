"""Networks of branches that are joined: GoogLeNet, Inception, DenseNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.parts import Joined, convolved, pooled_head


def googlenet(classes: int = 10) -> nn.Module:
    """Local response normalisation before modules of four branches (arXiv:1409.4842)."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5, alpha=0.05),
        four_branches(12), nn.MaxPool2d(3, 2, ceil_mode=True), four_branches(20), *pooled_head(20, classes),
    )  # fmt: skip


def four_branches(before: int) -> nn.Module:
    return Joined(
        convolved(before, 4, 1),
        nn.Sequential(convolved(before, 4, 1), convolved(4, 8, 3)),
        nn.Sequential(convolved(before, 4, 1), convolved(4, 4, 5)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), convolved(before, 4, 1)),
    )


def inception(classes: int = 10) -> nn.Module:
    """Inputs transformed by channel, kernels 1x3 and 3x1, an average pool as a branch (arXiv:1512.00567)."""

    def factored(before: int) -> nn.Module:
        tall = nn.Sequential(nn.Conv2d(before, 6, (1, 5), padding=(0, 2)), nn.Conv2d(6, 6, (5, 1), padding=(2, 0)))
        pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), convolved(before, 4, 1))
        return Joined(convolved(before, 6, 1), tall, pooled)

    def smaller(before: int) -> nn.Module:
        return Joined(nn.Conv2d(before, 8, 3, 2), nn.MaxPool2d(3, 2))

    return nn.Sequential(ByChannel(), convolved(3, 8, 3, 2), factored(8), smaller(16), factored(24),
                         *pooled_head(16, classes))  # fmt: skip


class ByChannel(nn.Module):
    """Each channel scaled and moved by itself, as torchvision's `transform_input` does."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [torch.unsqueeze(x[:, i], 1) * (0.458 + i / 100) + (i - 1) / 30 for i in range(3)]
        return torch.cat(parts, 1)


def densenet(classes: int = 10) -> nn.Module:
    """Every layer reads all before it; transitions halve by an average pool (arXiv:1608.06993)."""
    return nn.Sequential(
        convolved(3, 12, 3, 2), Dense(12, 6, 3), nn.BatchNorm2d(30), nn.ReLU(), nn.Conv2d(30, 12, 1),
        nn.AvgPool2d(2, 2), Dense(12, 6, 2), nn.BatchNorm2d(24), nn.ReLU(), *pooled_head(24, classes),
    )  # fmt: skip


class Dense(nn.Module):
    """A dense block: what each layer makes is joined to what there is."""

    def __init__(self, before: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(before + growth * i), nn.ReLU(), nn.Conv2d(before + growth * i, growth, 3, padding=1)
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)
