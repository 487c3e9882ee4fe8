"""Every detector of the table, fitted once on images and once on vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from guard.offline.attacks.fgsm import Fgsm
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.table import DETECTORS
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.needs import Evidence
from guard.offline.model.classifier import Classifier
from tests.offline import tiny

Kind = Literal["images", "vectors"]
KINDS: tuple[Kind, ...] = ("images", "vectors")
NAMES = tuple(DETECTORS)
ITEMS = 240


@dataclass(frozen=True)
class Fitted:
    """All detectors of one kind of input, and evidence of items that they were not fitted on."""

    classifier: Classifier
    detectors: dict[str, Detector]
    heads: dict[str, Head]
    examples: Examples
    inputs: Tensor  # [item, ...] clean, held out
    clean: Evidence  # of `inputs`
    attacked: Evidence  # of the same items

    def gather(self) -> Gather:
        return Gather(self.classifier, [need for detector in self.detectors.values() for need in detector.needs])


def classifier_of(kind: Kind) -> Classifier:
    return tiny.image_classifier() if kind == "images" else tiny.vector_classifier()


def items_of(kind: Kind, seed: int) -> tuple[Tensor, Tensor]:
    images, labels = (tiny.data if kind == "images" else tiny.vectors)(ITEMS, seed)
    return torch.from_numpy(images), torch.from_numpy(labels)


@cache
def fitted(kind: Kind) -> Fitted:
    classifier = classifier_of(kind)
    taps = [tap.name for tap in classifier.taps]
    detectors = {name: build(taps) for name, build in DETECTORS.items()}
    gather = Gather(classifier, [need for detector in detectors.values() for need in detector.needs])
    inputs, labels = items_of(kind, seed=1)
    held_out, held_out_labels = items_of(kind, seed=2)
    with torch.no_grad():
        noise = (torch.rand(inputs.shape, generator=torch.Generator().manual_seed(3)) - 0.5) / 8
        examples = Examples(
            gather(inputs),
            labels,
            gather((inputs + noise).clamp(0, 1)),
            gather(attack(classifier, inputs, labels)),
            ("fgsm",) * ITEMS,
            seed=4,
        )
        heads = {}
        for name, detector in detectors.items():
            with torch.enable_grad():
                heads[name] = detector.fit(examples)
        clean, attacked = gather(held_out), gather(attack(classifier, held_out, held_out_labels))
    return Fitted(classifier, detectors, heads, examples, held_out, clean, attacked)


def attack(classifier: Classifier, inputs: Tensor, labels: Tensor) -> Tensor:
    return Fgsm(budget=0.25)(classifier, inputs, labels, torch.Generator().manual_seed(5))


def auroc(clean: Tensor, attacked: Tensor) -> float:
    return float(np.mean(attacked.numpy()[:, None] > clean.numpy()[None, :]))
