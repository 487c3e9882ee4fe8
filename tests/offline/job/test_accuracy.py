"""Accuracy on clean data: each usual mistake is planted, found, and named with what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.errors import DataError
from guard.offline.data.dataset import Dataset
from guard.offline.job.accuracy import (
    MIN_GAIN_SHARE,
    Accuracy,
    check_accuracy,
    exchanged_classes,
    measure_accuracy,
    right_on_counted,
)
from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import Source, open_model
from tests.offline import tiny

pytestmark = pytest.mark.slow

ITEMS, CLASSES = 240, 6
SHAPE = (3, 6, 6)
WANTED: dict[str, Callable[[Tensor], Tensor]] = {  # pixels 0 to 1 as the planted network wants them on its wire
    "unit": lambda x: x,
    "bytes": lambda x: x * 255,
    "signed": lambda x: x * 2 - 1,
    "imagenet": lambda x: (x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]),
}


def features(pixels: Tensor) -> Tensor:
    """One number a class [item, class], of pixels [item, channel, height, width]: where which channel is bright."""
    red, blue = pixels[:, 0], pixels[:, 2]
    places = [red[:, :3, 3:], red[:, 3:, :3], red[:, 3:, 3:], blue[:, 3:, :3], blue[:, 3:, 3:], blue[:, :3, 3:]]
    return torch.stack([place.mean(dim=(1, 2)) for place in places], dim=1)


def data() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit-space images on the grid of bytes, each bright in its class's place, and labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, ITEMS)
    images = generator.integers(20, 90, (ITEMS, *SHAPE))
    for item, label in enumerate(labels):
        row, column = [(0, 3), (3, 0), (3, 3), (3, 0), (3, 3), (0, 3)][label]
        images[item, 0 if label < 3 else 2, row : row + 3, column : column + 3] += 120
    return (images / 255).astype(np.float32), labels


class Planted(nn.Module):
    """A network that is right on nearly all of `data` where its wire holds values of one kind, and only there."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1, 3, 1, 1)), nn.Parameter(torch.zeros(1, 3, 1, 1))
        ends = torch.stack([WANTED[kind](torch.full((3,), value)) for value in (0.0, 1.0)]).view(2, 1, 3, 1, 1)
        self.scale.data, self.shift.data = 1 / (ends[1] - ends[0]), -ends[0] / (ends[1] - ends[0])

    def forward(self, wire: Tensor) -> Tensor:
        pixels = wire * self.scale + self.shift
        return features(pixels.clamp(0.35, 0.5)) * 30  # all that is darker or brighter is the same to it


def planted(kind: str = "unit", box: tuple[float, float] = (0.0, 1.0)) -> Classifier:
    return open_model(Source(f"{__name__}:{kind}", SHAPE, (box[0],), (box[1],)))


def unit() -> nn.Module:
    return Planted("unit")


def bytes_() -> nn.Module:
    return Planted("bytes")


def signed() -> nn.Module:
    return Planted("signed")


def imagenet() -> nn.Module:
    return Planted("imagenet")


def items(images: NDArray[np.float32], labels: NDArray[np.int64]) -> Dataset:
    hashes = np.asarray([f"{i * 7919 % len(images):064d}" for i in range(len(images))])
    return Dataset(images, labels, hashes, "planted.npz")


def measured(images: NDArray[np.float32], labels: NDArray[np.int64], classifier: Classifier) -> Accuracy:
    return measure_accuracy(classifier, items(np.ascontiguousarray(images), labels))


def test_a_model_that_is_right_needs_no_explanation() -> None:
    images, labels = data()
    found = measured(images, labels, planted())
    assert found.share >= 0.95
    assert found.items == 200
    assert (found.causes, found.is_doubtful) == ((), False)
    assert str(found) == f"the model is right on {found.share:.0%} of 200 items"


LABELS: dict[str, tuple[Callable[[NDArray[np.int64]], NDArray[np.int64]], str, str]] = {
    "off by one": (lambda y: (y + 1) % CLASSES, "labels - 1", "subtract 1 from the labels (modulo 6)"),
    "off by minus two": (lambda y: (y - 2) % CLASSES, "labels + 2", "add 2 to the labels"),
    "another order": (lambda y: np.asarray([3, 0, 5, 1, 2, 4])[y], "classes in another order", "label 0 is 1, 1 is 3"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_wrong_labels_are_explained(kind: str) -> None:
    change, undone, remedy = LABELS[kind]
    images, labels = data()
    found = measured(images, change(labels), planted())
    assert found.share < 0.2
    assert [cause.undone for cause in found.causes] == [undone]
    assert found.causes[0].share >= 0.95
    assert f"; with {undone} it would be {found.causes[0].share:.0%}: " in str(found)
    assert remedy in str(found)


def test_the_order_of_folders_is_told_by_name() -> None:
    images, labels = data()
    classifier = planted()
    output = replace(classifier.spec.output, labels=("ant", "bee", "cat", "dog", "elk", "fox"))
    named = replace(classifier, spec=replace(classifier.spec, output=output))
    found = measured(images, np.asarray([1, 0, 2, 3, 5, 4])[labels], named)
    assert "for the model label 0 (ant) is 1, 1 (bee) is 0, 4 (elk) is 5, 5 (fox) is 4;" in str(found)


INPUTS: dict[str, tuple[Callable[[NDArray[np.float32]], NDArray[np.float32]], str]] = {
    "BGR": (lambda x: x[:, ::-1], "red and blue exchanged"),
    "negatives": (lambda x: 1 - x, "black and white exchanged"),
    "transposed": (lambda x: x.transpose(0, 1, 3, 2), "rows and columns exchanged"),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_wrong_inputs_are_explained(kind: str) -> None:
    change, undone = INPUTS[kind]
    images, labels = data()
    found = measured(change(images), labels, planted())
    assert found.share < 0.5
    assert found.causes[0].undone == undone
    assert found.causes[0].share >= 0.95


@pytest.mark.parametrize(
    ("kind", "box", "flags"),
    [
        ("bytes_", (0.0, 1.0), "--range 0 255"),
        ("unit", (0.0, 255.0), "--range 0 1"),
        ("signed", (0.0, 1.0), "--range -1 1"),
        ("imagenet", (0.0, 255.0), "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
    ],
)
def test_another_range_of_values_is_named_by_its_flags(kind: str, box: tuple[float, float], flags: str) -> None:
    images, labels = data()
    found = measured(images, labels, planted(kind, box))
    assert found.share < 0.5
    assert flags in [cause.undone.removeprefix("values of ") for cause in found.causes]
    best = max(found.causes, key=lambda cause: cause.share)
    (named,) = [cause for cause in found.causes if cause.undone.endswith(flags)]
    assert named.share == best.share >= 0.95


def test_unit_values_in_a_box_of_another_range_are_told() -> None:
    images, labels = data()
    classifier = planted("signed", (-1.0, 1.0))
    found = measured((images + 1) / 2, labels, classifier)  # the wire holds 0 to 1 in a box of -1 to 1
    assert "values of 0 to 1 taken for black to white" in [cause.undone for cause in found.causes]


def test_two_labels_exchanged() -> None:
    images, labels = tiny.data(200)
    keep = labels < 2
    network = nn.Sequential(tiny.image_model(), Pair()).eval()
    PAIR.append(network)
    classifier = open_model(Source(f"{__name__}:pair", tiny.SHAPE))
    found = measured(images[keep], 1 - labels[keep], classifier)
    assert found.causes[0].undone == "the two labels exchanged"
    assert found.causes[0].share >= 0.9


PAIR: list[nn.Module] = []


class Pair(nn.Module):
    """The first two of several logits."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, :2]


def pair() -> nn.Module:
    return PAIR[-1]


def test_labels_that_have_nothing_to_do_with_the_items_are_no_better_than_chance() -> None:
    images, labels = data()
    found = measured(images, np.random.default_rng(3).permutation(labels), planted())
    assert found.causes == ()
    assert found.is_chance
    assert "no better than chance" in str(found)


def test_a_weak_model_is_told_and_not_stopped() -> None:
    images, labels = data()
    weak = np.where(np.random.default_rng(4).random(ITEMS) < 0.5, labels, np.random.default_rng(5).permutation(labels))
    found = measured(images, weak, planted())
    assert 0.4 < found.share < 0.75
    assert not found.is_doubtful


def test_doubt_stops_unless_it_was_accepted() -> None:
    images, labels = data()
    wrong = items(images, (labels + 1) % CLASSES)
    with pytest.raises(DataError, match=r"planted.npz: the model is right on \d+%.*labels - 1.*--accept-accuracy"):
        check_accuracy(planted(), wrong, accepted=False)
    assert check_accuracy(planted(), wrong, accepted=True).is_doubtful
    assert not check_accuracy(planted(), items(images, labels), accepted=False).is_doubtful


def test_vectors_and_few_items() -> None:
    images, labels = tiny.vectors(30)
    assert measure_accuracy(tiny.vector_classifier(), items(images, labels)).share > 0.9
    assert measure_accuracy(tiny.vector_classifier(), items(images[:1], (labels[:1] + 1) % 3)).items == 1


def test_no_other_order_is_found_in_the_order_that_is() -> None:
    """Forty items of ten classes, seven in ten right: the half that is counted may be better than the whole."""
    generator = np.random.default_rng(0)
    for _ in range(100):
        labels = generator.integers(0, 10, 40)
        answers = np.where(generator.random(40) < 0.7, labels, generator.integers(0, 10, 40))
        for cause in exchanged_classes(answers, labels, 10, ()):
            assert "for the model label ;" not in str(cause)
            assert not cause.share > right_on_counted(answers, labels) + MIN_GAIN_SHARE
    turned = (labels + 1) % 10
    (cause,) = exchanged_classes(np.tile(turned, 5), np.tile(labels, 5), 10, ())
    assert cause.share == 1.0
    assert right_on_counted(turned, labels) == 0.0
