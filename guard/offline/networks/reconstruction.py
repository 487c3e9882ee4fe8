"""Training of an autoencoder that rebuilds clean items, so that what it cannot rebuild stands out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guard.offline.networks.architectures import autoencoder
from guard.offline.networks.training import Schedule, train


def train_autoencoder(items: Tensor, *, noise: float, epochs: int, seed: int) -> nn.Module:
    """Train an autoencoder to rebuild unit-space items [item, ...] from copies with Gaussian noise of this deviation.

    Source: Meng and Chen 2017, arXiv:1705.09064, section 5. Theirs keeps the side of an image; ours goes through a
    quarter of it, and has no sigmoid.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = autoencoder(tuple(items.shape[1:]))

        def loss(index: Tensor) -> Tensor:
            clean = items[index]
            noisy = (clean + noise * torch.randn_like(clean)).clamp(0.0, 1.0)
            return nn.functional.mse_loss(network(noisy), clean)

        train(network, len(items), loss, Schedule(epochs, 64, 3e-3, weight_decay=0.0))
    return network.eval().requires_grad_(False)
