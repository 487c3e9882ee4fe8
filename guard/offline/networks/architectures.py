"""Architectures of the guard's own small networks; what they learn is stated where they are trained."""

from __future__ import annotations

import torch
from torch import nn


def autoencoder(shape: tuple[int, ...]) -> nn.Module:
    """Build a network from items to items, through a quarter of an image's height and width or a vector's length."""
    if len(shape) == 3:
        return nn.Sequential(
            nn.Conv2d(shape[0], 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Upsample(size=((shape[1] + 1) // 2, (shape[2] + 1) // 2), mode="nearest"),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(size=shape[1:], mode="nearest"),
            nn.Conv2d(32, shape[0], 3, padding=1),
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
    """Build a network from items to logits: three convolutions for images, two hidden layers for vectors."""
    body: nn.Module
    if len(shape) == 3:
        body = nn.Sequential(
            nn.Conv2d(shape[0], 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        width = 256
    else:
        features = int(torch.Size(shape).numel())
        body = nn.Sequential(nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        width = 64
    found = nn.Sequential()
    found.add_module("body", body)
    found.add_module("head", nn.Linear(width, classes))
    return found


def convolutional(channels: int, width: int) -> nn.Sequential:
    """Build three stages of convolutions, the last averaged: [item, channel, height, width] -> [item, 4 x width]."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
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
