"""What an evaluation will take, measured before it begins."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from guard.offline.attacks.attack import Attack, Model
from guard.offline.evaluate import read
from guard.offline.fit import one_batch
from guard.offline.subject import HeldOut
from guard.runtime import Runtime

PROBED = 2  # items by which an attack's passes are counted


@dataclass(frozen=True)
class Passes:
    """Passes of the model that an attack makes over its items, with a backward or without."""

    forward: int
    backward: int


class Counted(nn.Module):
    """A model that counts how often it is called."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            self.backwards += 1
        else:
            self.forwards += 1
        return self.model(images)


def passes(model: Model, attack: Attack, images: Tensor, labels: Tensor) -> Passes:
    counted = Counted(model)
    attack(counted, images, labels, torch.Generator().manual_seed(0))
    return Passes(counted.forwards, counted.backwards)


def seconds_per_item(model: Model, attacks: Sequence[Attack], held_out: HeldOut) -> float:
    """What all the attacks together take an item: their passes, counted on a few items, at the speed of a batch."""
    images = one_batch(held_out.images)
    labels = torch.from_numpy(held_out.labels[: len(images)])
    forward_s, backward_s = speed(model, images)
    total = 0.0
    for attack in attacks:
        found = passes(model, attack, images[:PROBED], labels[:PROBED])
        total += found.forward * forward_s + found.backward * backward_s
    return total


def speed(model: Model, images: Tensor) -> tuple[float, float]:
    """Seconds an item of a forward, and of a forward with its backward to the input."""
    began = time.perf_counter()
    with torch.no_grad():
        model(images)
    between = time.perf_counter()
    watched = images.detach().requires_grad_(True)
    torch.autograd.grad(model(watched).sum(), watched)
    ended = time.perf_counter()
    return (between - began) / len(images), (ended - between) / len(images)


def seconds_to_read(runtime: Runtime, held_out: HeldOut) -> float:
    """What all programs of a bundle take an item, in a batch."""
    few = held_out.images[: len(one_batch(held_out.images))]
    read(runtime, few)
    began = time.perf_counter()
    read(runtime, few)
    return (time.perf_counter() - began) / len(few)


def kept_size(folder: Path, question: str, choose: Callable[[], int]) -> int:
    """What was chosen before for the same question, or chosen now and kept.

    Speeds differ from run to run; what an evaluation measures must not.
    """
    file = folder / f"{hashlib.sha256(question.encode()).hexdigest()[:24]}.json"
    try:
        return int(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        size = choose()
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(size), encoding="utf-8")
    return size
