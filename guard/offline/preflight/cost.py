"""Forecast of what `guard train` will take in time and memory, before it begins.

How it works. The passes of an attack are counted on a small linear model of the same inputs and classes, which is free,
and multiplied by the seconds that a forward and a backward of the real model take, measured on one batch. For example
PGD of 20 steps makes 21 forwards with a backward; at 2 ms each that is 42 ms an item, and 14 s for 330 items.
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

from guard.offline.attacks.attack import Attack
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.learning import BLOCK_SHARDS
from guard.offline.crafting.plan import MIN_FAMILY_ITEMS, REPORTED_ITEMS, TRIED_ITEMS_FACTOR
from guard.offline.crafting.shard import shard_items
from guard.offline.crafting.stage import ADAPTIVE_SHARE, fitting_seconds
from guard.offline.data.dataset import Dataset
from guard.offline.evaluation.forecast import PROBED_ITEMS, passes, speed
from guard.offline.job.job import Job
from guard.offline.model.classifier import Classifier
from guard.offline.work.parallel import cores

FITTED_COPIES = 4  # of an item's values while a guard is fitted on an attack: clean, attacked, noise, one on its way
PEAK_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # in which the system states a process's largest memory


@dataclass(frozen=True)
class Cost:
    """Seconds of the stages of one training at their least sizes, and the memory that it takes."""

    forward_s: float  # an item, in a batch
    gradient_s: float  # a forward with its backward
    crafting_s: float
    fitting_s: float
    report_s: float
    memory_bytes: int

    @property
    def least_s(self) -> float:
        """Seconds that the smallest training takes, the share that is kept for the adaptive attack included."""
        return (self.crafting_s + self.fitting_s + self.report_s) / (1 - ADAPTIVE_SHARE)


def cost_of(job: Job, classifier: Classifier, data: Dataset) -> Cost:
    """Measure the model's speed, and forecast what this job's training takes at least."""
    recipe, shape = job.recipe, data.item_shape
    forward_s, gradient_s = speed(TorchModel(classifier.graph), torch.from_numpy(data.images[: shard_items(shape)]))
    seen, left_out = (
        [seconds(attack, shape, classifier.spec.output.classes, forward_s, gradient_s) for attack in attacks]
        for attacks in (recipe.attacks, recipe.left_out)
    )
    fitted = job.craft_items or round(TRIED_ITEMS_FACTOR * MIN_FAMILY_ITEMS)
    reported = job.attack_items or round(TRIED_ITEMS_FACTOR * REPORTED_ITEMS)
    item_bytes = math.prod(shape) * np.dtype(np.float32).itemsize
    side_by_side = job.threads or cores()
    return Cost(
        forward_s,
        gradient_s,
        fitted * sum(seen) / side_by_side,
        fitting_seconds(job, classifier, data),
        reported * (sum(seen) + sum(left_out)) / side_by_side,
        peak_bytes() + FITTED_COPIES * len(seen) * fitted * item_bytes,
    )


def seconds(attack: Attack, shape: Sequence[int], classes: int, forward_s: float, gradient_s: float) -> float:
    """Return the seconds of one worker that an attack takes for an item."""
    model, images = linear_model(shape, classes), torch.full((PROBED_ITEMS, *shape), 0.5)
    block = BLOCK_SHARDS * shard_items(shape)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    found = passes(model, attack, images, labels, block)
    return found.forward * forward_s + found.backward * gradient_s


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
