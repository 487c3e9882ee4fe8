"""Small networks that an attack trains for itself: a substitute, an autoencoder.

Rule 1: nothing global is drawn from or changed: the same generator, items and threads give the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from guard.offline.attacks.attack import Knowledge

Build = Callable[[], nn.Module]


def drawn(build: Build, generator: torch.Generator, like: Tensor) -> nn.Module:
    """The network with weights drawn from `generator`, uniform as He et al. 2015 scale them, and biases of zero.

    It is where `like` is, and in its precision.
    """
    network = empty(build).to_empty(device="cpu")
    for part in network.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            bound = math.sqrt(6 / part.weight[0].numel())
            unit = torch.rand(part.weight.shape, generator=generator, device=generator.device)
            with torch.no_grad():
                part.weight.copy_((2 * unit - 1) * bound)
                part.bias.zero_()  # type: ignore[union-attr]  # all of ours have one
    return network.to(device=like.device, dtype=like.dtype)


def empty(build: Build) -> nn.Module:
    """The network without weights: torch would draw them from its global generator."""
    with torch.device("meta"):
        return build().eval()


def train(
    network: nn.Module,
    inputs: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    epochs: int,
    generator: torch.Generator,
    batch: int = 64,
    rate: float = 2e-3,
) -> None:
    """AdamW with a rate that falls to zero; `loss` is of the outputs, and of which items they are [item]."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate)
    total, done = epochs * -(-len(inputs) // batch), 0
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(inputs), generator=generator, device=generator.device).to(inputs.device)
            for index in order.split(batch):
                optimiser.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * done / total)) / 2
                optimiser.zero_grad()
                loss(network(inputs[index]), index).backward()
                optimiser.step()
                done += 1
    optimiser.zero_grad()


def knowledge_of(network: nn.Module) -> Knowledge:
    return {name: value.detach().float().cpu() for name, value in network.state_dict().items()}


def recalled(build: Build, knowledge: Knowledge, like: Tensor) -> nn.Module:
    """The network that this is the knowledge of, where `like` is and in its precision."""
    network = empty(build)
    network.load_state_dict({name: value.clone() for name, value in knowledge.items()}, assign=True)
    return network.to(device=like.device, dtype=like.dtype).requires_grad_(False)
