"""A small U-Net that learns what an attack has added to an item, guided by the model's own answer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from guard.offline.networks.architectures import CONVOLUTIONS
from guard.offline.networks.training import Schedule, train

WIDTH_CHANNELS = 24  # of the first level; twice as many of the others


class UNet(nn.Module):
    """Network from items [item, channel, *places] to what is to be taken off them, of the same shape.

    Three levels, each of half the side of the one before; what a level found on the way down is joined on the way up.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        convolution, width, deep = CONVOLUTIONS[len(shape) - 1], WIDTH_CHANNELS, 2 * WIDTH_CHANNELS
        places = shape[1:]
        half = tuple((size + 1) // 2 for size in places)
        self.fine = nn.Sequential(convolution(shape[0], width, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(convolution(width, deep, 3, stride=2, padding=1), nn.ReLU())
        self.coarse = nn.Sequential(
            convolution(deep, deep, 3, stride=2, padding=1),
            nn.ReLU(),
            convolution(deep, deep, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(size=half, mode="nearest"),
        )
        self.join_middle = nn.Sequential(
            convolution(2 * deep, deep, 3, padding=1), nn.ReLU(), nn.Upsample(size=places, mode="nearest")
        )
        self.join_fine = nn.Sequential(convolution(deep + width, width, 3, padding=1), nn.ReLU())
        self.last = convolution(width, shape[0], 3, padding=1)
        nn.init.zeros_(self.last.weight)  # type: ignore[arg-type]  # so that it begins by taking nothing off
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, items: Tensor) -> Tensor:
        fine = self.fine(items)
        middle = self.middle(fine)
        joined = self.join_middle(torch.cat([middle, self.coarse(middle)], dim=1))
        found: Tensor = self.last(self.join_fine(torch.cat([fine, joined], dim=1)))
        return found


def cleaned_by(network: nn.Module, items: Tensor) -> Tensor:
    """Return unit-space items [item, ...] less what the network finds in them, cut to the unit box."""
    cleaned: Tensor = items - network(items)
    return cleaned.clamp(0.0, 1.0)


def train_guided(
    items: Tensor, originals: Tensor, model: Callable[[Tensor], Tensor], *, epochs: int, seed: int
) -> nn.Module:
    """Train a U-Net to clean items [item, ...] so that the model answers them as it answers their originals.

    The loss is the mean absolute difference of the model's logits, in units of their spread over the originals.
    """
    with torch.no_grad():
        wanted = torch.cat([model(part) for part in originals.split(256)])
    spread = float(wanted.std().clamp_min(1e-6))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(tuple(items.shape[1:]))

        def loss(index: Tensor) -> Tensor:
            return (model(cleaned_by(network, items[index])) - wanted[index]).abs().mean() / spread

        train(network, len(items), loss, Schedule(epochs, 32, 2e-3, weight_decay=0.0))
    return network.eval().requires_grad_(False)
