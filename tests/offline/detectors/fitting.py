"""Every detector of the table, fitted once on each kind of input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from guard.offline.attacks.methods.fgsm import Fgsm
from guard.offline.attacks.model import TorchModel
from guard.offline.data.attacked import Attacked
from guard.offline.data.dataset import Dataset
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.table import DETECTORS
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.needs import Evidence
from guard.offline.job.second_settings import ASKING
from guard.offline.model.classifier import Classifier
from guard.offline.training.fit_heads import FittingItems, fit_heads
from tests.offline import tiny
from tests.offline.evidence import dropped

Kind = Literal["images", "series", "vectors"]
KINDS: tuple[Kind, ...] = ("images", "series", "vectors")
CLASSIFIERS = {  # with a dropout that drops nothing: the same answers as tiny's
    "images": dropped.image_classifier,
    "series": dropped.series_classifier,
    "vectors": dropped.vector_classifier,
}
ITEMS_OF = {"images": tiny.data, "series": tiny.series, "vectors": tiny.vectors}
NAMES = tuple(DETECTORS)
LISTED: tuple[tuple[str, Kind], ...] = tuple(
    (name, kind) for name, build in DETECTORS.items() for kind in KINDS if kind in build(["a", "b"]).kinds
)
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
    return CLASSIFIERS[kind]()


def items_of(kind: Kind, seed: int) -> tuple[Tensor, Tensor]:
    images, labels = ITEMS_OF[kind](ITEMS, seed)
    return torch.from_numpy(images), torch.from_numpy(labels)


@cache
def fitted(kind: Kind) -> Fitted:
    classifier = classifier_of(kind)
    taps = [tap.name for tap in classifier.taps]
    remembered = EvidenceCache(classifier)
    inputs, labels = items_of(kind, seed=1)
    held_out, held_out_labels = items_of(kind, seed=2)
    noise = (torch.rand(inputs.shape, generator=torch.Generator().manual_seed(3)) - 0.5) / 8
    noisy, attacked = (inputs + noise).clamp(0, 1), attack(classifier, inputs, labels)
    clean = Dataset(inputs.numpy(), labels.numpy(), np.arange(ITEMS).astype(str))
    fooling = Attacked(attacked.numpy(), ("fgsm", "another") * (ITEMS // 2))
    items = FittingItems(clean, noisy.numpy(), fooling)
    heads = fit_heads(
        [build(taps, **settings(name, kind)) for name, build in DETECTORS.items() if (name, kind) in LISTED],
        items,
        remembered,
        seed=4,
        report=lambda _: None,
    )
    detectors = {name: head.detector for name, head in heads.items()}
    needs = [need for detector in detectors.values() for need in detector.needs]
    evidence = [remembered(needs, images) for images in (clean.images, items.noisy, fooling.items)]
    examples = Examples(evidence[0], labels, evidence[1], fooling.seen_as(evidence[2]), seed=4)
    unseen = attack(classifier, held_out, held_out_labels)
    calm, fooled = remembered(needs, held_out.numpy()), remembered(needs, unseen.numpy())
    return Fitted(classifier, detectors, heads, examples, held_out, calm, fooled)


def settings(name: str, kind: Kind) -> dict[str, Any]:
    """What a detector is given here beside its defaults: a second network, where it asks one."""
    return {"networks": (tiny.second_network(kind),)} if name in ASKING else {}


def attack(classifier: Classifier, inputs: Tensor, labels: Tensor) -> Tensor:
    return Fgsm(budget=0.25)(TorchModel(classifier), inputs, labels, torch.Generator().manual_seed(5))


def auroc(clean: Tensor, attacked: Tensor) -> float:
    return float(np.mean(attacked.numpy()[:, None] > clean.numpy()[None, :]))
