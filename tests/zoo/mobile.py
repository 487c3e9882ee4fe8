"""Networks for phones: MobileNet v2 and v3, MNASNet, EfficientNet, ShuffleNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.parts import Skip, Squeeze, convolved, pooled_head


def inverted(
    before: int,
    after: int,
    stride: int,
    activation: type[nn.Module],
    *,
    kernel: int = 3,
    gate: type[nn.Module] | None = None,
) -> nn.Module:
    """An inverted residual: expand, filter each channel by itself, weigh the channels, shrink."""
    wide = before * 2
    path = nn.Sequential(
        convolved(before, wide, 1, activation=activation),
        convolved(wide, wide, kernel, stride, wide, activation=activation),
        Squeeze(wide, gate) if gate else nn.Identity(),
        convolved(wide, after, 1, activation=nn.Identity),
    )
    return Skip(path) if before == after and stride == 1 else path


def mobilenet_v2(classes: int = 10) -> nn.Module:
    """ReLU6 (arXiv:1801.04381)."""
    return nn.Sequential(
        convolved(3, 8, 3, 2, activation=nn.ReLU6), inverted(8, 12, 2, nn.ReLU6), inverted(12, 12, 1, nn.ReLU6),
        convolved(12, 32, 1, activation=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(32, classes),
    )  # fmt: skip


def mobilenet_v3(classes: int = 10) -> nn.Module:
    """Hard swish, hard sigmoid as the gate (arXiv:1905.02244)."""
    return nn.Sequential(
        convolved(3, 8, 3, 2, activation=nn.Hardswish), inverted(8, 8, 1, nn.ReLU, gate=nn.Hardsigmoid),
        inverted(8, 12, 2, nn.Hardswish, kernel=5, gate=nn.Hardsigmoid), inverted(12, 12, 1, nn.Hardswish),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 24), nn.Hardswish(), nn.Linear(24, classes),
    )  # fmt: skip


def mnasnet(classes: int = 10) -> nn.Module:
    """Its head takes the mean of the axes [2, 3] (arXiv:1807.11626)."""
    body = nn.Sequential(
        convolved(3, 8, 3, 2), convolved(8, 8, 3, 1, 8), nn.Conv2d(8, 8, 1), inverted(8, 12, 2, nn.ReLU, kernel=5),
        inverted(12, 12, 1, nn.ReLU, kernel=5), convolved(12, 24, 1),
    )  # fmt: skip
    return MeanHead(body, 24, classes)


class MeanHead(nn.Module):
    """A body, the mean of its maps, a linear layer."""

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean([2, 3]))
        return logits


def efficientnet(classes: int = 10) -> nn.Module:
    """SiLU and squeeze-and-excitation (arXiv:1905.11946)."""
    return nn.Sequential(
        convolved(3, 8, 3, 2, activation=nn.SiLU), inverted(8, 12, 2, nn.SiLU, gate=nn.Sigmoid),
        inverted(12, 12, 1, nn.SiLU, kernel=5, gate=nn.Sigmoid), convolved(12, 32, 1, activation=nn.SiLU),
        *pooled_head(32, classes),
    )  # fmt: skip


def shufflenet(classes: int = 10) -> nn.Module:
    """Channels split in two halves and shuffled (arXiv:1807.11164)."""
    body = nn.Sequential(convolved(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1), Shuffled(8, 16, 2), Shuffled(16, 16, 1),
                         convolved(16, 32, 1))  # fmt: skip
    return MeanHead(body, 32, classes)


class Shuffled(nn.Module):
    """A ShuffleNet unit: at stride 1 one half of the channels goes as it is."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        half = after // 2
        self.stride = stride
        entering = before if stride > 1 else half
        self.left = nn.Sequential(self.by_channel(before, stride), convolved(before, half, 1)) if stride > 1 else None
        self.right = nn.Sequential(
            convolved(entering, half, 1), self.by_channel(half, stride), convolved(half, half, 1)
        )

    @staticmethod
    def by_channel(width: int, stride: int) -> nn.Module:
        return convolved(width, width, 3, stride, width, activation=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        if self.left is None:
            kept, changed = x.chunk(2, dim=1)
            return shuffle(torch.cat((kept, self.right(changed)), dim=1), 2)
        return shuffle(torch.cat((self.left(x), self.right(x)), dim=1), 2)


def shuffle(x: Tensor, groups: int) -> Tensor:
    items, channels, height, width = x.size()
    x = x.view(items, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(items, channels, height, width)
