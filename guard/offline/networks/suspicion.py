"""Small network that tells attacked items from clean ones, and the places of an item that it says so for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from guard.offline.data.deviation import spread_of
from guard.offline.networks.training import Schedule, train

WIDTH_CHANNELS = 12
REACHES_PIXELS = (1, 2, 4)  # of the taps of each layer, apart: 15 places together, and none is lost
CONVOLVED: Mapping[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d}


class Suspicion(nn.Module):
    """Network from items [item, channel, *places] to log-odds [item] that they were attacked.

    It has three layers of convolutions, each place's own answer averaged. Its derivative is written out, so that a
    program in ONNX can have it without another pass of automatic differentiation.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.convolved = CONVOLVED[len(shape) - 1]
        sizes = (shape[0], *[WIDTH_CHANNELS] * len(REACHES_PIXELS))
        kernel = [3] * (len(shape) - 1)
        self.weights = nn.ParameterList(torch.empty(out, into, *kernel) for into, out in pairwise(sizes))
        self.shifts = nn.ParameterList(torch.zeros(out) for out in sizes[1:])
        self.last = nn.Linear(WIDTH_CHANNELS, 1)
        for weight in self.weights:
            nn.init.kaiming_normal_(weight)
        self.register_buffer("centre", torch.zeros(shape[0], *[1] * (len(shape) - 1)))
        self.register_buffer("spread", torch.ones(shape[0], *[1] * (len(shape) - 1)))
        self.centre: Tensor
        self.spread: Tensor

    def forward(self, items: Tensor) -> Tensor:
        found: Tensor = self.last(functional.relu(self.layers(items)[-1]).flatten(2).mean(dim=2))
        return found.squeeze(1)

    def layers(self, items: Tensor) -> list[Tensor]:
        """Return what each layer computes, before it is cut at zero."""
        found, value = [], (items - self.centre) / self.spread
        for weight, shift, reach in zip(self.weights, self.shifts, REACHES_PIXELS, strict=True):
            found.append(self.convolved(value, weight, shift, padding=reach, dilation=reach))
            value = functional.relu(found[-1])
        return found

    def slope(self, items: Tensor) -> Tensor:
        """Return the derivative of the mean's log-odds by each value [item, channel, *places]."""
        layers = self.layers(items)
        places = layers[-1][0, 0].numel()
        each = (1, -1, *[1] * (items.ndim - 2))
        slope = self.last.weight.reshape(each) / places * (layers[-1] > 0)
        for place in reversed(range(len(layers))):
            back = self.weights[place].transpose(0, 1).flip(tuple(range(2, items.ndim)))
            slope = self.convolved(slope, back, padding=REACHES_PIXELS[place], dilation=REACHES_PIXELS[place])
            if place:
                slope = slope * (layers[place - 1] > 0)
        return slope / self.spread


def train_suspicion(clean: Tensor, attacked: Tensor, *, epochs: int, seed: int) -> Suspicion:
    """Train a network to tell attacked from clean items [item, channel, *places], each kind weighed alike."""
    items = torch.cat([clean, attacked])
    wanted = torch.cat([torch.zeros(len(clean)), torch.ones(len(attacked))])
    weights = torch.cat([torch.full((len(part),), len(items) / (2 * len(part))) for part in (clean, attacked)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Suspicion(tuple(items.shape[1:]))
        flat = items.transpose(0, 1).flatten(1).T
        network.centre.copy_(flat.mean(dim=0).reshape(network.centre.shape))
        network.spread.copy_(spread_of(flat).reshape(network.spread.shape))

        def loss(index: Tensor) -> Tensor:
            return functional.binary_cross_entropy_with_logits(network(items[index]), wanted[index], weights[index])

        train(network, len(items), loss, Schedule(epochs, 32, 3e-3, weight_decay=1e-3))
    return network.eval().requires_grad_(False)
