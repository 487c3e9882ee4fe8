"""Outlier class: a network over the layers that knows the model's classes and one more, for what is attacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.data.enough import check_attacked
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.kind_network import (
    KindNetwork,
    Learning,
    fit_targets,
    restored_kinds,
)
from guard.offline.detectors.parts.supervision import item_weights
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.needs import Evidence


@dataclass(frozen=True)
class OutlierClass:
    """Detector that learns to name an item's class from the model's layers, or that it belongs to none.

    Source: Grosse et al. 2017, arXiv:1702.06280, section 6. They train the model itself again with one class more; a
    guard leaves the model as it is, so ours is a perceptron over its taps.
    """

    name: ClassVar[str] = "outlier_class"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    latents: tuple[Latent, ...]
    learning: Learning = field(default_factory=lambda: Learning(epochs=30))

    @property
    def needs(self) -> tuple[Latent | Logits, ...]:
        return (*self.latents, Logits())

    def fit(self, examples: Examples) -> OutlierClassHead:
        check_attacked(self.name, examples.count_attacked())
        parts = [joined(self, evidence) for evidence in (examples.clean, examples.noisy, examples.attacked.items)]
        classes = examples.clean[Logits()].shape[1]
        named = examples.noisy[Logits()].argmax(dim=1)  # noise keeps the class that the model names
        targets = torch.cat([examples.labels, named, torch.full((len(parts[2]),), classes)])
        weights = item_weights(len(parts[0]), len(parts[1]), examples.attacked)
        return OutlierClassHead(self, fit_targets(torch.cat(parts), targets, weights, self.learning, examples.seed))

    def restore(self, state: Mapping[str, Tensor]) -> OutlierClassHead:
        return OutlierClassHead(self, restored_kinds(state, "network."))


class OutlierClassHead(Head):
    def __init__(self, detector: OutlierClass, network: KindNetwork) -> None:
        super().__init__(detector)
        self.asked, self.network = detector, network

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds of the outlier class [item]; larger is more suspicious."""
        answers: Tensor = self.network(joined(self.asked, evidence))
        return answers[:, -1] - answers[:, :-1].logsumexp(dim=1)


def joined(detector: OutlierClass, evidence: Evidence) -> Tensor:
    """Return the features of all taps and the logits [item, feature]."""
    return torch.cat([evidence[need] for need in detector.needs], dim=1)


def outlier_class(taps: Sequence[str], *, width: int = 16, epochs: int = 30, learning_rate: float = 3e-3) -> Detector:
    return OutlierClass(tuple(Latent(tap) for tap in taps), Learning(width, epochs, learning_rate))
