"""Weights of a small network: drawn from a generator, kept by name, and put back.

Rule 1: nothing global is drawn from or changed: the same generator, items and threads give the same weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

Knowledge: TypeAlias = Mapping[str, Tensor]  # by name; float32 or int64, so that a file can keep it
Build = Callable[[], nn.Module]


def drawn(build: Build, generator: torch.Generator, like: Tensor) -> nn.Module:
    """Build the network with weights drawn uniformly from `generator`, scaled by its inputs, and biases of zero.

    It is on the device of `like`, and in its precision. Source: He et al. 2015.

    Raises:
        TypeError: a layer with numbers of its own that nothing fills: they would be whatever the memory held.
    """
    network = empty(build).to_empty(device="cpu")
    for part in network.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            bound = math.sqrt(6 / part.weight[0].numel())
            unit = torch.rand(part.weight.shape, generator=generator, device=generator.device)
            with torch.no_grad():
                part.weight.copy_((2 * unit - 1) * bound)
                part.bias.zero_()  # type: ignore[union-attr]  # all of ours have one
        elif [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
            raise TypeError(f"weights of {type(part).__name__} are not drawn; wanted linear layers and convolutions")
    return network.to(device=like.device, dtype=like.dtype)


def empty(build: Build) -> nn.Module:
    """Build the network without weights, which torch would draw from its global generator."""
    with torch.device("meta"):
        return build().eval()


def knowledge_of(network: nn.Module) -> Knowledge:
    """Return the weights by name, as a file can keep them."""
    return {name: value.detach().float().cpu() for name, value in network.state_dict().items()}


def under(state: Knowledge, prefix: str) -> Knowledge:
    """Return the weights of the part whose names begin so, by the names that the part gives them."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def digest_of(knowledge: Knowledge) -> str:
    """Return the SHA-256 (hex) of weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(knowledge.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def recalled(build: Build, knowledge: Knowledge, like: Tensor) -> nn.Module:
    """Build the network with these weights, on the device of `like` and in its precision."""
    network = empty(build)
    network.load_state_dict({name: value.clone() for name, value in knowledge.items()}, assign=True)
    return network.to(device=like.device, dtype=like.dtype).requires_grad_(False)
