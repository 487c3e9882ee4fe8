"""What a second network answers to clean items: the checks before it is asked for its opinion.

Rule 1: a network that is hardly better than chance, or of other classes, is refused in words that say which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from guard.errors import ModelError
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Images
from guard.offline.data.splits import Split
from guard.offline.job.accuracy import Cause, Labels, exchanged_classes, right_on_counted
from guard.offline.model.classifier import Classifier

MAX_CHECKED_ITEMS, BATCH_ITEMS = 1000, 50
MIN_OVER_CHANCE_SHARE = 0.1  # by how much it must be right more often than chance is, where classes are about alike
MIN_KAPPA_SHARE = 0.2  # of what chance leaves, the part that it must be right on where one class is nearly all


@dataclass(frozen=True)
class Answers:
    """Answers of a second network to clean items beside the labels and the model's own answers."""

    items: int
    right: float  # share of the items
    agrees: float  # share of the items: the model names the same class
    chance: float  # share on which it would be right if answers had nothing to do with labels

    @property
    def wanted(self) -> float:
        """The share of the items above chance on which it must be right.

        With 10 classes alike 10 %; where 5 % are positive chance leaves 9.5 %, and a fifth of that is 1.9 %.
        """
        return min(MIN_OVER_CHANCE_SHARE, MIN_KAPPA_SHARE * (1 - self.chance))

    def __str__(self) -> str:
        return f"right on {self.right:.1%} of {self.items} clean items, agrees with the model on {self.agrees:.1%}"


def check_answers(
    name: str, network: nn.Module, classifier: Classifier, data: Dataset, split: Split = Split.HEADS
) -> Answers:
    """Ask a network about clean items of a split that it has not learned.

    Raises:
        ModelError: it is of no help, or of other classes.
    """
    some = checked_items(name, data, split).in_memory()
    images = some.images[:]
    ours, theirs = (named(one, images) for one in (classifier.graph, network))
    classes = classifier.spec.output.classes
    counts = [np.bincount(numbers, minlength=classes) / len(some) for numbers in (theirs, some.labels)]
    chance = max(1 / classes, float(counts[0] @ counts[1]))
    found = Answers(len(some), float((theirs == some.labels).mean()), float((theirs == ours).mean()), chance)
    order = other_order(theirs, some.labels, classifier)
    if order is not None and order.share > right_on_counted(theirs, some.labels) + MIN_OVER_CHANCE_SHARE:
        raise ModelError(
            f"{name} is {found}; {order}; wanted the model's own order of classes: a second network whose outputs "
            "are in it"
        )
    if found.right < chance + found.wanted:
        raise ModelError(
            f"{name} is {found}; chance is {chance:.1%}, and wanted are at least {100 * found.wanted:.2g}% more: "
            "look at its range (--second-range, or --second-mean and --second-std), its channels, its classes; or "
            "leave it out"
        )
    return found


def checked_items(name: str, data: Dataset, split: Split) -> Dataset:
    """Return the clean items on which a network is checked. Raises ModelError where they leave nothing to be checked.

    That is known before a network is trained.
    """
    some = data.part(split).take(slice(MAX_CHECKED_ITEMS))
    if len(set(some.labels.tolist())) < 2:
        raise ModelError(
            f"{name} cannot be checked: the {len(some)} clean items that are kept for that are of one class, on which "
            "any network is right that names it always; wanted items of two classes at least in --data"
        )
    return some


def other_order(theirs: Labels, labels: Labels, classifier: Classifier) -> Cause | None:
    """Return the order of classes under which most answers are right, counted on items that did not suggest it."""
    output = classifier.spec.output
    return next(iter(exchanged_classes(theirs, labels, output.classes, output.labels)), None)


def named(network: nn.Module, images: Images) -> Labels:
    """Return the class that a network names for each unit-space item [item]."""
    with torch.no_grad():
        parts = [
            network(torch.from_numpy(images[i : i + BATCH_ITEMS])).argmax(dim=1)
            for i in range(0, len(images), BATCH_ITEMS)
        ]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.int64)
