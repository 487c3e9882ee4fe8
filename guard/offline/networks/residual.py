"""Residual classifiers of the guard's own, sized by what they may cost: convolution, ReLU and addition alone.

Rule 1: batch normalisation is there while a network learns; what is compiled is folded, with the same answers.

How it works. An image of 24 pixels a side or more is halved by the first convolution already. Then come stages of two
convolutions with a shortcut, each but the first at half the side of the one before and twice its width, until a few
pixels are left, which are averaged. For example 3 x 32 x 32 at width 32: sides 16, 8 and 4, widths 32, 64 and 128,
308,650 numbers to learn and 12.3 million multiply-adds. Series [channel, time] have the same network along their one
axis; vectors have a perceptron of two hidden layers.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from guard.offline.networks.multiply_adds import multiply_adds

HALVED_FROM_PIXELS = 24  # the side from which on the first convolution halves
LAST_PIXELS = 4  # the side at which no stage follows
MAX_STAGES_BLOCKS = 5
MAX_WIDTH_FACTOR = 4  # of the first stage's width: the widest stage of a deep network
WIDTH_STEPS = tuple(range(4, 257, 4))  # widths that are tried
CENTRE_MEAN, SPREAD_FACTOR = 0.5, 4.0  # unit space is brought to about zero mean and unit variance
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}  # by the number of an item's axes beside the channels
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


@dataclass(frozen=True)
class Design:
    """Design of a classifier: items [channel, height, width], [channel, time] or [feature] -> logits [class]."""

    item_shape: tuple[int, ...]
    classes: int
    width: int

    def build(self, *, normed: bool) -> nn.Module:
        """Build the network with torch's own initial weights: `normed` to learn, else as it is compiled."""
        if len(self.item_shape) == 1:
            return Perceptron(self)
        return Residual(self, normed=normed)

    @property
    def stages(self) -> tuple[int, ...]:
        """Width of each stage."""
        side = max(self.item_shape[1:]) // self.first_stride
        count = 1 + round(math.log2(max(side, LAST_PIXELS) / LAST_PIXELS))
        return tuple(self.width * min(2**place, MAX_WIDTH_FACTOR) for place in range(min(count, MAX_STAGES_BLOCKS)))

    @property
    def first_stride(self) -> int:
        return 2 if max(self.item_shape[1:]) >= HALVED_FROM_PIXELS else 1

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one item."""
        with torch.device("meta"):
            network = self.build(normed=False).eval()
        return multiply_adds(network, torch.empty(1, *self.item_shape, device="meta"))

    def costing(self, wanted: float) -> Design:
        """Return the design whose multiply-adds are nearest, in ratio, to those wanted."""
        place = bisect_left(WIDTH_STEPS, wanted, key=lambda width: replace(self, width=width).multiply_adds)
        tried = [replace(self, width=width) for width in WIDTH_STEPS[max(place - 1, 0) : place + 1]]
        return min(tried, key=lambda one: abs(math.log(one.multiply_adds / max(wanted, 1.0))))


class Unit(nn.Module):
    """Convolution that keeps its sides or halves them, with the normalisation that it learns with."""

    def __init__(self, axes: int, before: int, after: int, size: int, stride: int, *, normed: bool) -> None:
        super().__init__()
        self.convolution = CONVOLUTIONS[axes](before, after, size, stride, padding=size // 2, bias=not normed)
        self.norm: nn.Module = NORMS[axes](after) if normed else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.norm(self.convolution(values))
        return found

    def folded(self) -> Mapping[str, Tensor]:
        """Return weight and bias of the convolution that gives what both give in evaluation mode."""
        weight, norm = self.convolution.weight.detach(), self.norm
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            return {"weight": weight, "bias": self.convolution.bias.detach()}  # type: ignore[union-attr]
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        scale = norm.weight.detach() / torch.sqrt(variance + norm.eps)
        shape = (-1, *[1] * (weight.ndim - 1))
        return {"weight": weight * scale.reshape(shape), "bias": norm.bias.detach() - mean * scale}


class Block(nn.Module):
    """Two convolutions, and the values before them added to what they give."""

    def __init__(self, axes: int, before: int, after: int, stride: int, *, normed: bool) -> None:
        super().__init__()
        self.first = Unit(axes, before, after, 3, stride, normed=normed)
        self.second = Unit(axes, after, after, 3, 1, normed=normed)
        changed = stride != 1 or before != after
        self.shortcut = Unit(axes, before, after, 1, stride, normed=normed) if changed else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        inner = self.second(torch.relu(self.first(values)))
        return torch.relu(inner + self.shortcut(values))


class Residual(nn.Module):
    """Residual network from unit-space items [item, channel, ...] to logits [item, class]."""

    def __init__(self, design: Design, *, normed: bool) -> None:
        super().__init__()
        self.design = design
        channels, *sides = design.item_shape
        axes, widths = len(sides), design.stages
        self.stem = Unit(axes, channels, widths[0], 3, design.first_stride, normed=normed)
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.Sequential(
            *(
                Block(axes, before, after, 1 if place == 0 else 2, normed=normed)
                for place, (before, after) in enumerate(pairs)
            )
        )
        self.head = nn.Linear(widths[-1], design.classes)

    def forward(self, items: Tensor) -> Tensor:
        values = self.blocks(torch.relu(self.stem((items - CENTRE_MEAN) * SPREAD_FACTOR)))
        logits: Tensor = self.head(values.mean(dim=tuple(range(2, values.ndim))))
        return logits


class Perceptron(nn.Module):
    """Perceptron of two hidden layers from unit-space vectors [item, feature] to logits [item, class]."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        (features,) = design.item_shape
        self.first, self.second = nn.Linear(features, design.width), nn.Linear(design.width, design.width)
        self.head = nn.Linear(design.width, design.classes)

    def forward(self, items: Tensor) -> Tensor:
        hidden = torch.relu(self.first((items - CENTRE_MEAN) * SPREAD_FACTOR))
        logits: Tensor = self.head(torch.relu(self.second(hidden)))
        return logits


def folded(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights by name of a network without normalisation that answers as this one in evaluation mode."""
    state = {name: value.detach() for name, value in network.state_dict().items() if ".norm." not in name}
    for name, part in network.named_modules():
        if isinstance(part, Unit):
            state |= {f"{name}.convolution.{key}": value for key, value in part.folded().items()}
    return {name: value.float().cpu().contiguous() for name, value in state.items()}
