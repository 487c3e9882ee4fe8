"""Forecast of what `guard train` will take in time and memory, before it begins.

How it works. The passes of an attack are counted on a small linear model of the same inputs and classes, which is free,
and multiplied by the seconds that a forward and a backward of the real model take, measured on one batch. For example
PGD of 20 steps makes 21 forwards with a backward; at 2 ms each that is 42 ms an item, and 14 s for 330 items.

What is not known before an attack runs is on how many items it succeeds: the forecast is for attacks that always do.
Memory beside the attacked items was measured: trainings on 2,000 items of 64 values and on 14,000 of 784 took 0.13 and
0.3 GB more than had been taken when they were forecast.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from guard.offline.attacks.attack import Attack, learns
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.learning import BLOCK_SHARDS
from guard.offline.crafting.plan import REPORTED_ITEMS, TRIED_ITEMS_FACTOR
from guard.offline.crafting.shard import shard_items
from guard.offline.crafting.stage import LEARNING, TIMED_TRIES, learning_items
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.evaluation.forecast import PROBED_ITEMS, Passes, passes, speed
from guard.offline.job.job import Job
from guard.offline.model.classifier import Classifier
from guard.offline.preflight.fitting import HARMLESS_COPIES, fitting_seconds
from guard.offline.work.parallel import one_thread

CRAFTED_COPIES = 3  # of an item's values that an attack's crafted set holds: clean, attacked, noise
POOLED_COPIES = 2  # that are held once more while heads are fitted, of the split's items: attacked, noise
VERIFYING_FORWARDS = 2  # of an item: is it classified correctly, and is it still once it is attacked
LEARNING_BATCH_ITEMS = 8  # that attacks that learn first pass at once, unless a recipe says otherwise
DATA_COPIES = 3  # of all clean items, while they are split, read and scored
FITTING_BYTES = 2**27  # by compiling, its sessions, and the libraries that only later stages load
PEAK_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # in which the system states a process's largest memory


@dataclass(frozen=True)
class Cost:
    """Seconds of the stages of one training, where attacks always succeed, and the memory that it takes."""

    forward_s: float  # an item, in a batch, on one thread
    gradient_s: float  # a forward with its backward
    fitted_items: int  # that each attack is tried on, to fit on
    crafting_s: float
    fitting_s: float
    report_s: float
    memory_bytes: int

    @property
    def guard_s(self) -> float:
        """Seconds that the guard takes, without a report."""
        return self.crafting_s + self.fitting_s


def cost_of(job: Job, classifier: Classifier, data: Dataset) -> Cost:
    """Measure the model's speed, and forecast what this job's training takes at least."""
    recipe, shape = job.recipe, data.item_shape
    speeds = Speeds.of(classifier, data)
    seen, left_out = (
        [seconds(attack, shape, classifier.spec.output.classes, speeds) for attack in attacks]
        for attacks in (recipe.attacks, recipe.left_out)
    )
    learning, held_out = len(learning_items(data)), len(data.part(Split.TEST))
    fitted = min(learning, job.craft_items or recipe.items)
    reported = min(held_out, job.attack_items or round(TRIED_ITEMS_FACTOR * REPORTED_ITEMS))
    pooled = LEARNING[Split.HEADS] * (POOLED_COPIES * len(seen) + HARMLESS_COPIES)
    item_bytes = (CRAFTED_COPIES * len(seen) + pooled) * math.prod(shape) * np.dtype(np.float32).itemsize
    side_by_side, taken = job.runs_on.workers, peak_bytes() + FITTING_BYTES + DATA_COPIES * held_bytes(data)
    return Cost(
        *speeds.shard,
        fitted,
        fitted * sum(seen) / side_by_side,
        fitting_seconds(job, classifier, data),
        reported * (sum(seen) + sum(left_out)) / side_by_side,
        taken + round(item_bytes * fitted),
    )


def held_bytes(data: Dataset) -> int:
    """Return the bytes of the clean items that are held at once: all, or where they lie on disk those fitted on."""
    return learning_items(data).images.nbytes if data.is_on_disk else data.images.nbytes


def quickest(classifier: Classifier, images: Tensor) -> tuple[float, float]:
    """Measure the seconds an item of a forward, and of one with its backward, on one thread as attacks run."""
    with one_thread():
        tries = [speed(TorchModel(classifier.graph), images) for _ in range(TIMED_TRIES)]
    forwards, gradients = zip(*tries, strict=True)
    return min(forwards), min(gradients)


@dataclass(frozen=True)
class Speeds:
    """Seconds an item of a forward, and of one with its backward, in the batches in which attacks pass items."""

    shard: tuple[float, float]
    learning: tuple[float, float]  # smaller batches, in which what a call costs by itself weighs more

    @staticmethod
    def of(classifier: Classifier, data: Dataset) -> Speeds:
        """Measure the speeds of a classifier on the first items."""
        images = torch.from_numpy(data.images[: shard_items(data.item_shape)])
        return Speeds(quickest(classifier, images), quickest(classifier, images[:LEARNING_BATCH_ITEMS]))


def seconds(attack: Attack, shape: Sequence[int], classes: int, speeds: Speeds) -> float:
    """Return the seconds of one worker that an attack takes for an item, learning and verifying included."""
    found = counted(attack, shape, classes)
    forward_s, gradient_s = speeds.learning if learns(attack) else speeds.shard
    return (found.forward + VERIFYING_FORWARDS) * forward_s + found.backward * gradient_s


def counted(attack: Attack, shape: Sequence[int], classes: int) -> Passes:
    """Count the passes that an attack makes over an item, on a model that costs next to nothing."""
    model, images = linear_model(shape, classes), torch.full((PROBED_ITEMS, *shape), 0.5)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    return passes(model, attack, images, labels, BLOCK_SHARDS * shard_items(shape))


def linear_model(shape: Sequence[int], classes: int) -> TorchModel:
    """Build a model of these inputs and classes that costs next to nothing."""
    features = math.prod(shape)
    network = nn.Sequential(nn.Flatten(), nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, classes))
    generator = torch.Generator().manual_seed(0)
    for weights in network.parameters():
        drawn: Tensor = torch.randn(weights.shape, generator=generator)
        weights.data.copy_(drawn / math.sqrt(weights.shape[-1]))
    return TorchModel(network.eval().requires_grad_(requires_grad=False))


def peak_bytes() -> int:
    """Return the largest memory that this process has taken so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT_BYTES
