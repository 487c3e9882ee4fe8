"""Transformers whose attention stays inside windows: Swin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.parts import feed_forward


def swin(classes: int = 10) -> nn.Module:
    """Windows of 4x4, every second block's shifted and masked; patches merged in between (arXiv:2103.14030)."""
    return Swin(classes)


class Swin(nn.Module):
    """Four blocks on 8x8 and 4x4 patches, channels last, as torchvision writes it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12)
        self.first = nn.Sequential(Shifted(12, 3, 4, 0), Shifted(12, 3, 4, 2))
        self.merge = Merging(12)
        self.second = nn.Sequential(Shifted(24, 3, 2, 0), Shifted(24, 3, 2, 1))
        self.last, self.head = nn.LayerNorm(24), nn.Linear(24, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.patches(images).permute(0, 2, 3, 1))
        x = self.last(self.second(self.merge(self.first(x)))).permute(0, 3, 1, 2)
        logits: Tensor = self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return logits


class Merging(nn.Module):
    """Four neighbouring patches become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return merged


class Shifted(nn.Module):
    """Attention in windows that are moved by `shift`, then two linear layers."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.before, self.packed, self.outer = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(heads, window**2, window**2) * 0.1)
        self.after, self.layers = nn.LayerNorm(width), feed_forward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.before(x))
        result: Tensor = x + self.layers(self.after(x))
        return result

    def attend(self, x: Tensor) -> Tensor:
        items, height, width, channels = x.shape
        size, shift = self.window, self.shift
        if shift:
            x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        down, across = height // size, width // size
        x = x.view(items, down, size, across, size, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(items * down * across, size * size, channels)
        packed = self.packed(x).reshape(x.size(0), x.size(1), 3, self.heads, channels // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * (channels // self.heads) ** -0.5).matmul(key.transpose(-2, -1)) + self.bias
        if shift:
            mask = self.mask(x, height, width)
            scores = scores.view(x.size(0) // mask.size(0), mask.size(0), self.heads, x.size(1), x.size(1))
            scores = (scores + mask.unsqueeze(1).unsqueeze(0)).view(-1, self.heads, x.size(1), x.size(1))
        x = self.outer(scores.softmax(-1).matmul(value).transpose(1, 2).reshape(x.size(0), x.size(1), channels))
        x = x.view(items, down, across, size, size, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(items, height, width, channels)
        return torch.roll(x, shifts=(shift, shift), dims=(1, 2)) if shift else x

    def mask(self, x: Tensor, height: int, width: int) -> Tensor:
        """Which pairs of places of a window [window, place, place] were apart before the roll."""
        size = self.window
        regions = x.new_zeros((height, width))
        parts = ((0, -size), (-size, -self.shift), (-self.shift, None))
        for number, (rows, columns) in enumerate((a, b) for a in parts for b in parts):
            regions[rows[0] : rows[1], columns[0] : columns[1]] = number
        regions = regions.view(height // size, size, width // size, size)
        regions = regions.permute(0, 2, 1, 3).reshape(-1, size * size)
        apart = regions.unsqueeze(1) - regions.unsqueeze(2)
        return apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)
