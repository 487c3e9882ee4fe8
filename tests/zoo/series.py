"""Networks along one axis: LSTM, GRU and plain recurrent classifiers, and 1-D convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """Rows of an image, one after the other, through recurrent layers; the last row's state decides."""

    def __init__(self, layers: nn.Module, width: int, classes: int, stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.layers, self.head = stem or nn.Identity(), layers, nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.stem(images).transpose(1, 2).flatten(2)  # [item, row, (channel, column)]
        states = self.layers(rows)[0]
        logits: Tensor = self.head(torch.cat([states[:, -1], states.mean(dim=1)], dim=1))
        return logits


def lstm(classes: int = 10) -> nn.Module:
    """Two layers in both directions behind a convolution."""
    layers = nn.LSTM(4 * 8, 12, num_layers=2, bidirectional=True, batch_first=True)
    return Recurrent(layers, 48, classes, nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU()))


def gru(classes: int = 10) -> nn.Module:
    return Recurrent(nn.GRU(4 * 8, 16, batch_first=True), 32, classes, nn.Conv2d(3, 4, 3, 4, 1))


def elman(classes: int = 10) -> nn.Module:
    """A plain recurrent network."""
    return Recurrent(nn.RNN(4 * 8, 12, batch_first=True), 24, classes, nn.Conv2d(3, 4, 3, 4, 1))


def convolutions_1d(classes: int = 10) -> nn.Module:
    """1-D convolutions, normalisations and pools along the pixels, row by row."""
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 8, 7, 4, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(4), nn.Conv1d(8, 16, 3),
        nn.ReLU(), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, classes),
    )  # fmt: skip
