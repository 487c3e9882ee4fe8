"""A forecast of the time that an evaluation will take, measured before it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guard.cascade import Cascade
from guard.offline.attacks.attack import Attack, LearningAttack, learns
from guard.offline.attacks.informed import Informed
from guard.offline.attacks.model import Model, Objective, TorchModel
from guard.offline.attacks.ranges import drawn, ranged
from guard.offline.crafting.learning import BLOCK_SHARDS
from guard.offline.crafting.shard import shard_items
from guard.offline.data.dataset import Dataset
from guard.offline.evidence.batches import one_batch
from guard.offline.programs.read import read

PROBED_ITEMS = 2  # items by which an attack's passes are counted


@dataclass(frozen=True)
class Passes:
    """Passes of the model that an attack makes over each item, with a backward or without."""

    forward: float
    backward: float

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def times(self, factor: float) -> Passes:
        return Passes(factor * self.forward, factor * self.backward)


class Counted(nn.Module):
    """A model that counts the items passed through it, with a backward or without."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0
        self.eval()

    @property
    def so_far(self) -> Passes:
        return Passes(self.forwards, self.backwards)

    @property
    def engine(self) -> str:
        return self.model.engine

    @property
    def module(self) -> nn.Module:
        return self

    def value_and_gradient(self, points: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        return TorchModel(self).value_and_gradient(points, objective)

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            self.backwards += len(images)
        else:
            self.forwards += len(images)
        return self.model(images)


def passes(model: Model, attack: Attack, images: Tensor, labels: Tensor, block: int) -> Passes:
    """Count an attack's passes for an item, with the item's share of what is learned for a block of so many items."""
    counted, learning = Counted(model), Passes(0, 0)
    if learns(attack):
        attack, learning = learn(attack, counted, images, labels, block)
    else:  # of ranges what items draw on average
        places = (torch.arange(len(images), dtype=torch.float64) + 0.5) / len(images)
        attack = drawn(attack, dict.fromkeys(ranged(attack), places))
    before = counted.so_far
    attack(counted, images, labels, torch.Generator().manual_seed(0))
    return learning + (counted.so_far + before.times(-1)).times(1 / len(images))


def learn(
    attack: LearningAttack, counted: Counted, images: Tensor, labels: Tensor, block: int
) -> tuple[Attack, Passes]:
    """Return the attack with what two items teach it, and what learning from a block costs each of the block's items.

    Passes are counted over one item and over two, so that what every item adds is told apart from what is spent once.
    """
    counts = []
    for items in (1, 2):
        before = counted.so_far
        knowledge = attack.learn(counted, images[:items], labels[:items], torch.Generator().manual_seed(0))
        counts.append(counted.so_far + before.times(-1))
    each = counts[1] + counts[0].times(-1)
    once = counts[0] + each.times(-1)
    return Informed(attack, knowledge), (once + each.times(min(block, attack.learning_items))).times(1 / block)


def seconds_per_item(model: Model, attacks: Sequence[Attack], held_out: Dataset) -> float:
    """Measure the seconds of all attacks an item: passes counted on a few items, at the speed of a batch."""
    images = one_batch(held_out.images)
    labels = torch.from_numpy(held_out.labels[: len(images)])
    forward_s, backward_s = speed(model, images)
    block, total = BLOCK_SHARDS * shard_items(held_out.images.shape[1:]), 0.0
    for attack in attacks:
        found = passes(model, attack, images[:PROBED_ITEMS], labels[:PROBED_ITEMS], block)
        total += found.forward * forward_s + found.backward * backward_s
    return total


def speed(model: Model, images: Tensor) -> tuple[float, float]:
    """Measure the seconds an item of a forward, and of a forward with its backward to the input."""
    began = time.perf_counter()
    with torch.no_grad():
        model(images)
    between = time.perf_counter()
    watched = images.detach().requires_grad_(True)
    torch.autograd.grad(model(watched).sum(), watched)
    ended = time.perf_counter()
    return (between - began) / len(images), (ended - between) / len(images)


def seconds_to_read(cascade: Cascade, held_out: Dataset) -> float:
    """Measure the seconds that all programs of a bundle take an item, in a batch."""
    few = held_out.images[: len(one_batch(held_out.images))]
    read(cascade, few)
    began = time.perf_counter()
    read(cascade, few)
    return (time.perf_counter() - began) / len(few)
