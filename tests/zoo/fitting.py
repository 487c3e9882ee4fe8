"""Networks with random weights made into classifiers: their last layer is fitted on what the others give.

How it works. The running statistics of batch normalisations are taken from the pictures first. Then the last linear
layer, or 1x1 convolution, that gives as many numbers as there are classes is fitted by logistic regression on its own
inputs. Where that does not reach 60 %, the whole network is trained for a few epochs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

MIN_ACCURACY_SHARE = 0.6
FIT_ITEMS = 1000
HELD_OUT_ITEMS = 600
BATCH_ITEMS = 100
EPOCHS = 30
LEARNING_RATE = 2e-3
LOSS_ENOUGH = 0.4  # nats: about 90 % right
NOISE_LEVELS = 6.0  # standard deviation, of 255: grain, so that no two values of a picture tie


@dataclass(frozen=True)
class Pictures:
    """Pictures as bytes [item, height, width, channel], or vectors of floats [item, feature], and labels [item]."""

    images: NDArray[Any]
    labels: NDArray[np.int64]

    @property
    def unit(self) -> Tensor:
        """The same as floats from 0 to 1, [item, channel, height, width]; vectors as they are."""
        if self.images.ndim == 2:
            return torch.from_numpy(self.images)
        return torch.from_numpy(self.images).permute(0, 3, 1, 2).float().div(255).contiguous()


def digits(size: int, channels: int = 3) -> tuple[Pictures, Pictures]:
    """Scikit-learn's digits enlarged, in faint colours and with grain: to fit a network on, and to guard it with."""
    found = load_digits()
    generator = torch.Generator().manual_seed(0)
    grey = functional.interpolate(torch.from_numpy(found.images).float()[:, None] / 16, size, mode="bilinear")
    tint = 0.8 + 0.2 * torch.rand(len(grey), channels, 1, 1, generator=generator)
    levels = 20 + 200 * grey * tint + NOISE_LEVELS * torch.randn(len(grey), channels, size, size, generator=generator)
    images = levels.clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    labels = found.target.astype(np.int64)
    return Pictures(images[:FIT_ITEMS], labels[:FIT_ITEMS]), Pictures(
        images[FIT_ITEMS : FIT_ITEMS + HELD_OUT_ITEMS], labels[FIT_ITEMS : FIT_ITEMS + HELD_OUT_ITEMS]
    )


def fitted(network: nn.Module, pictures: Pictures, held_out: Pictures) -> float:
    """Fit a network in place; the share of held-out pictures that it has right."""
    images, labels = pictures.unit, torch.from_numpy(pictures.labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        take_statistics(network, images)
        before = copy.deepcopy(network.state_dict())
        fit_last_layer(network, images, labels)
        right = accuracy(network, held_out)
        if right < MIN_ACCURACY_SHARE:
            network.load_state_dict(before)
            train_all(network, images, labels)
            right = accuracy(network, held_out)
    return right


def take_statistics(network: nn.Module, images: Tensor) -> None:
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for part in images.split(BATCH_ITEMS):
            network(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def fit_last_layer(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    layer, features = last_layer(network, images)
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    model = LogisticRegression(C=1.0, max_iter=300)
    model.fit(((features - mean) / deviation).numpy(), labels.numpy())
    weight = torch.from_numpy(model.coef_).float() / deviation
    bias = torch.from_numpy(model.intercept_).float() - weight @ mean
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(bias)


def last_layer(network: nn.Module, images: Tensor) -> tuple[nn.Linear | nn.Conv2d, Tensor]:
    """The layer that was last to give a number a class, and its inputs [item, feature], averaged over places."""
    with torch.no_grad():
        classes = network(images[:2]).shape[1]
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...], _result: Tensor) -> None:
        seen.append((layer, given[0]))

    layers = [
        part for part in network.modules()
        if (isinstance(part, nn.Linear) and part.out_features == classes)
        or (isinstance(part, nn.Conv2d) and part.out_channels == classes and part.groups == 1)
    ]  # fmt: skip
    hooks = [layer.register_forward_hook(note) for layer in layers]
    parts = []
    with torch.no_grad():
        for part in images.split(BATCH_ITEMS):
            seen.clear()
            network(part)
            layer, given = seen[-1]
            axes = tuple(range(2, given.dim())) if isinstance(layer, nn.Conv2d) else tuple(range(1, given.dim() - 1))
            parts.append(given.mean(dim=axes) if axes else given)
    for hook in hooks:
        hook.remove()
    return layer, torch.cat(parts)


def train_all(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train a network whole, for `EPOCHS` or until its mean loss is `LOSS_ENOUGH`, and take its statistics anew.

    Some keep the statistics of the last batch alone, by which they answer nothing.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        network.train().requires_grad_(True)
        losses = []
        for index in torch.randperm(len(images)).split(BATCH_ITEMS // 2):
            optimiser.zero_grad()
            loss = functional.cross_entropy(network(images[index]), labels[index])
            loss.backward()
            optimiser.step()
            losses.append(float(loss))
        if sum(losses) <= LOSS_ENOUGH * len(losses):
            break
    network.eval().requires_grad_(False)
    take_statistics(network, images)


def accuracy(network: nn.Module, pictures: Pictures) -> float:
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(dim=1) for part in pictures.unit.split(BATCH_ITEMS)])
    return float((answers == torch.from_numpy(pictures.labels)).float().mean())
