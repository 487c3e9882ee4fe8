"""Masking network: which places of an item the named class rests on, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guard.offline.networks.architectures import CONVOLUTIONS
from guard.offline.networks.training import Schedule, train

WIDTH_CHANNELS = 16  # of the first layer; twice as many where the class is told


class Masker(nn.Module):
    """Network from items [item, ...] and named classes [item, class], one-hot, to a mask [item, 1, *places], 0 to 1.

    Of vectors it is [item, feature]. Images and series go through a quarter of each side, where the class is told.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        width, deep = WIDTH_CHANNELS, 2 * WIDTH_CHANNELS
        self.told = nn.Linear(classes, deep)
        places = shape[1:]
        self.places = len(places)
        if not places:
            self.down = nn.Sequential(nn.Linear(shape[0], 4 * width), nn.ReLU(), nn.Linear(4 * width, deep))
            self.up = nn.Sequential(nn.ReLU(), nn.Linear(deep, 4 * width), nn.ReLU(), nn.Linear(4 * width, shape[0]))
            return
        convolution = CONVOLUTIONS[len(places)]
        half = tuple((size + 1) // 2 for size in places)
        self.down = nn.Sequential(
            convolution(shape[0], width, 3, stride=2, padding=1),
            nn.ReLU(),
            convolution(width, deep, 3, stride=2, padding=1),
        )
        self.up = nn.Sequential(
            nn.ReLU(),
            nn.Upsample(size=half, mode="nearest"),
            convolution(deep, width, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(size=places, mode="nearest"),
            convolution(width, 1, 3, padding=1),
        )

    def forward(self, items: Tensor, named: Tensor) -> Tensor:
        deep = self.down(items)
        told = self.told(named)
        mask: Tensor = torch.sigmoid(self.up(deep + told.reshape(*told.shape, *[1] * self.places)))
        return mask


def train_masker(items: Tensor, named: Tensor, masks: Tensor, *, epochs: int, seed: int) -> Masker:
    """Train a masking network to give these masks [item, ...] of items [item, ...] and named classes [item, class]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Masker(tuple(items.shape[1:]), named.shape[1])

        def loss(index: Tensor) -> Tensor:
            return nn.functional.binary_cross_entropy(network(items[index], named[index]), masks[index])

        train(network, len(items), loss, Schedule(epochs, 64, 3e-3, weight_decay=1e-3))
    frozen: Masker = network.eval().requires_grad_(False)
    return frozen
