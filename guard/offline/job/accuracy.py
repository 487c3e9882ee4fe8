"""How often a model is right on clean data, and where a low share is likely to come from.

How it works: the model answers at most 200 items as they are. Where it is right on fewer than eight in ten, each likely
mistake is undone in turn: labels moved by one, which costs no further answer; where that explains too little those of
the inputs, on 100 items (red and blue exchanged, another range of values); then classes in another order. What makes
the model right on at least 20 points more is a cause, best first.

Rule 1: a cause is counted on items that did not suggest it: an order of classes is found on one half, counted on the
other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from guard.errors import DataError, ModelError
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Images
from guard.offline.job.likely_inputs import likely_inputs
from guard.offline.model.asking import asked
from guard.offline.model.classifier import Classifier

MAX_ANSWERED_ITEMS, MAX_TRIED_ITEMS = 200, 100  # as they are, and with each mistake of the inputs undone
BATCH_ITEMS = 50
MIN_GAIN_SHARE = 0.2  # by how much undoing a mistake must help
GOOD_SHARE = 0.8  # a model that is right on so many cannot gain that much; a cause that makes it so is enough
MIN_ORDER_GAIN_SHARE = 0.1  # by how much another order must help more than any simpler cause
CHANCE_TAIL_SHARE = 0.01  # a model so good by chance more rarely than this is better than chance
MAX_BEHIND_SHARE = 0.1  # by how much a cause that is told may explain less than the best
MAX_NAMED_CLASSES = 5
ANSWER_PENALTY = 1e-3  # for moving a class of which no item was answered

Labels = NDArray[np.int64]  # [item] class numbers, given or predicted


@dataclass(frozen=True)
class Cause:
    """A mistake that may have been made, and the share of items on which the model is right once it is undone."""

    undone: str  # as it continues "with": "labels - 1"
    remedy: str
    share: float

    def __str__(self) -> str:
        return f"with {self.undone} it would be {self.share:.0%}: {self.remedy}"


@dataclass(frozen=True)
class Accuracy:
    """Number of items on which a model is right, and the causes that were found where these are few, best first."""

    right: int
    items: int
    chance: float  # share on which it would be right if answers had nothing to do with labels
    causes: tuple[Cause, ...] = ()

    @property
    def share(self) -> float:
        return self.right / self.items

    @property
    def is_good(self) -> bool:
        return self.share >= GOOD_SHARE

    @property
    def is_chance(self) -> bool:
        """Whether answers that have nothing to do with the labels would often be right as often."""
        return not self.is_good and bool(binom.sf(self.right - 1, self.items, self.chance) > CHANCE_TAIL_SHARE)

    @property
    def is_doubtful(self) -> bool:
        return bool(self.causes) or self.is_chance

    def __str__(self) -> str:
        text = f"the model is right on {self.share:.0%} of {self.items} items"
        if self.causes:
            return f"{text}; {'; '.join(map(str, self.causes[:2]))}"
        unexplained = "no better than chance; are labels, order of classes, channels and range of values right?"
        return f"{text}, {unexplained}" if self.is_chance else text


def check_accuracy(classifier: Classifier, data: Dataset, *, accepted: bool) -> Accuracy:
    """Measure the accuracy. Raises DataError where it is doubtful and has not been accepted."""
    accuracy = measure_accuracy(classifier, data)
    if accuracy.is_doubtful and not accepted:
        raise DataError(f"{data.name}: {accuracy}; or go on as it is with --accept-accuracy")
    return accuracy


def measure_accuracy(classifier: Classifier, data: Dataset) -> Accuracy:
    """Count on how many items the model is right, and look for causes where these are few."""
    some = data.take(np.argsort(data.hashes, kind="stable")[:MAX_ANSWERED_ITEMS]).in_memory()
    predicted = answers(classifier, some.images[:])
    right, classes = int((predicted == some.labels).sum()), classifier.spec.output.classes
    counts = [np.bincount(numbers, minlength=classes) / len(some) for numbers in (predicted, some.labels)]
    accuracy = Accuracy(right, len(some), float(counts[0] @ counts[1]))
    if accuracy.is_good:
        return accuracy
    names = classifier.spec.output.labels
    found = list(moved_labels(predicted, some.labels, classes))
    if max(cause.share for cause in found) < GOOD_SHARE:
        found += changed_inputs(classifier, some.take(slice(MAX_TRIED_ITEMS)))
    # Another order of classes can copy a simpler cause, and is none beside it.
    best = max(cause.share for cause in found)
    orders = exchanged_classes(predicted, some.labels, classes, names)
    asked = right_on_counted(predicted, some.labels)
    found += [one for one in orders if one.share > best + MIN_ORDER_GAIN_SHARE and one.share >= asked + MIN_GAIN_SHARE]
    least = max(accuracy.share + MIN_GAIN_SHARE, max(cause.share for cause in found) - MAX_BEHIND_SHARE)
    helps = [cause for cause in found if cause.share >= least]
    return replace(accuracy, causes=tuple(sorted(helps, key=lambda cause: -cause.share)))


def answers(classifier: Classifier, images: Images) -> Labels:
    """Return the class that the model names for each item [item]; values may lie outside of unit space.

    Raises:
        ModelError: it cannot be asked about such values.
    """
    if classifier.answering is not None:  # values outside of unit space are its own to answer
        return classifier.answering.predict(np.asarray(images, dtype=np.float32))
    parts = [asked(classifier, torch.from_numpy(part)).argmax(dim=1) for part in batches(images)]
    return torch.cat(parts).numpy().astype(np.int64)


def batches(images: Images) -> Iterator[Images]:
    for start in range(0, len(images), BATCH_ITEMS):
        yield np.ascontiguousarray(images[start : start + BATCH_ITEMS], dtype=np.float32)


def moved_labels(predicted: Labels, labels: Labels, classes: int) -> Iterator[Cause]:
    """Yield the best move of all labels by one number, from the last class on to the first."""
    counts = np.bincount((predicted - labels) % classes, minlength=classes)
    move = 1 + int(counts[1:].argmax())
    share = float(counts[move]) / len(labels)
    move -= classes if move > classes // 2 else 0
    if classes == 2:
        yield Cause("the two labels exchanged", "exchange 0 and 1 in the labels", share)
    else:
        sign = "+" if move > 0 else "-"
        act = f"add {move} to" if move > 0 else f"subtract {-move} from"
        undone, what = (
            f"labels {sign} {abs(move)}",
            f"{act} the labels (modulo {classes}), or mend the order of classes",
        )
        yield Cause(undone, what, share)


def changed_inputs(classifier: Classifier, data: Dataset) -> Iterator[Cause]:
    """Yield what the model answers to inputs that were made otherwise, as far as it can take them."""
    for likely in likely_inputs(data.images[:], classifier.spec.input):
        try:
            found = answers(classifier, likely.images)
        except ModelError:  # such as a code that an embedding does not have: no mistake that could have been made
            continue
        yield Cause(likely.undone, likely.remedy, float((found == data.labels).mean()))


def exchanged_classes(predicted: Labels, labels: Labels, classes: int, names: tuple[str, ...]) -> Iterator[Cause]:
    """Yield the order of classes under which most answers are right: found on one half, counted on the other.

    Nothing where it is the order that they have. What it gains, it gains over `right_on_counted`.
    """
    confusion = np.zeros((classes, classes))  # [label, answer]
    np.add.at(confusion, (labels[::2], predicted[::2]), 1)
    _, order = linear_sum_assignment(confusion + ANSWER_PENALTY * np.eye(classes), maximize=True)
    held_out = labels[1::2]
    if not len(held_out):
        return
    share = float((order[held_out] == predicted[1::2]).mean())
    moved = [label for label in np.unique(labels).tolist() if order[label] != label]
    if not moved:
        return
    shown = [f"{label}{f' ({names[label]})' if label < len(names) else ''} is {order[label]}" for label in moved]
    listed = ", ".join(shown[:MAX_NAMED_CLASSES]) + (", …" if shown[MAX_NAMED_CLASSES:] else "")
    yield Cause(
        "classes in another order", f"for the model label {listed}; bring labels or folders into its order", share
    )


def right_on_counted(predicted: Labels, labels: Labels) -> float:
    """Return the share of right answers, as they are, on the half that orders of classes are counted on."""
    return float((predicted[1::2] == labels[1::2]).mean()) if len(labels) > 1 else 0.0
