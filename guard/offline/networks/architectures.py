"""Architectures of the guard's own small networks; what they learn is stated where they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

# By the number of axes of space or time.
CONVOLUTIONS: Mapping[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
POOLS: Mapping[int, Callable[[int], nn.Module]] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}


def autoencoder(shape: tuple[int, ...]) -> nn.Module:
    """Build a network from items to items, through a quarter of each side of a plane, or of a line."""
    if places := shape[1:]:
        convolution = CONVOLUTIONS[len(places)]
        return nn.Sequential(
            convolution(shape[0], 32, 3, stride=2, padding=1),
            nn.ReLU(),
            convolution(32, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Upsample(size=tuple((size + 1) // 2 for size in places), mode="nearest"),
            convolution(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(size=places, mode="nearest"),
            convolution(32, shape[0], 3, padding=1),
        )
    features = int(torch.Size(shape).numel())
    narrow = max(2, features // 4)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, 64),
        nn.ReLU(),
        nn.Linear(64, narrow),
        nn.Linear(narrow, 64),
        nn.ReLU(),
        nn.Linear(64, features),
        nn.Unflatten(1, shape),
    )


def small_classifier(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build a network from items to logits: three convolutions for images and series, two hidden layers for vectors."""
    body: nn.Module
    if places := len(shape) - 1:
        convolution, averages = CONVOLUTIONS[places], POOLS[places]
        body = nn.Sequential(
            convolution(shape[0], 32, 3, padding=1),
            nn.ReLU(),
            convolution(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            convolution(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            averages(2),
            nn.Flatten(),
        )
        width = 64 * 2**places
    else:
        features = int(torch.Size(shape).numel())
        body = nn.Sequential(nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        width = 64
    found = nn.Sequential()
    found.add_module("body", body)
    found.add_module("head", nn.Linear(width, classes))
    return found


def feature_network(shape: tuple[int, ...], stacked: int, width: int) -> nn.Sequential:
    """Build a network from `stacked` items [item, stacked x channel, ...] to features [item, 4 x width]."""
    channels = stacked * shape[0]
    return convolutional(channels, width, len(shape) - 1) if shape[1:] else perceptron(channels, 4 * width)


def convolutional(channels: int, width: int, places: int = 2) -> nn.Sequential:
    """Build three stages of convolutions, the last averaged over space or time: -> [item, 4 x width]."""
    convolution, averages = CONVOLUTIONS[places], POOLS[places]
    return nn.Sequential(
        convolution(channels, width, 3, padding=1),
        nn.ReLU(),
        convolution(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        convolution(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        averages(1),
        nn.Flatten(),
    )


def perceptron(features: int, width: int) -> nn.Sequential:
    """Build a perceptron of two layers: [item, feature] -> [item, width]."""
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def wide_perceptron(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Build a perceptron of three layers from vectors to logits, wide enough for the steps of a forest."""
    found, features = nn.Sequential(), int(torch.Size(shape).numel())
    found.add_module("body", nn.Sequential(*perceptron(features, 160), nn.Linear(160, 64), nn.ReLU()))
    found.add_module("head", nn.Linear(64, classes))
    return found
