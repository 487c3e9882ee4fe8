"""Kernel density of the penultimate latent among clean items of the predicted class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.errors import DataError
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.distances import AnchoredPoints
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.needs import Evidence

MIN_CLASS_REFERENCES = 3  # references that a class needs for a density of its own
# Stands for "not of this class" in units of squared bandwidths; finite, so that no 0 * inf arises
OTHER_CLASS_DISTANCE = 1e6


@dataclass(frozen=True)
class KernelDensity:
    """Detector that scores how thinly clean items of the predicted class lie around the latent.

    The bandwidth is a share of the median distance between clean items of one class, which carries over between
    networks.

    Source: Feinman et al. 2017, arXiv:1703.00410, section 5.1; their dropout uncertainty is left out (50 forwards an
    item).
    """

    name: ClassVar[str] = "kernel_density"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = (StandIn("class that the model names", "this step's class, held"),)

    latent: Latent
    bandwidth: float = 0.5  # in median within-class distances
    references: int = 1000  # clean items kept, spread evenly over the classes

    @property
    def needs(self) -> tuple[Latent | Logits, ...]:
        return (self.latent, Logits())

    def fit(self, examples: Examples) -> KernelDensityHead:
        z, labels = examples.clean[self.latent], examples.labels
        classes = examples.clean[Logits()].shape[1]
        keep = pick(labels, classes, self.references, examples.generator)
        z, labels = z[keep], labels[keep]
        scale = 1.0 / (math.sqrt(2.0) * self.bandwidth * typical_distance(z, labels))
        other_class = 1.0 - torch.nn.functional.one_hot(labels, classes).to(z.dtype).T  # [class, reference]
        other_class[(1.0 - other_class).sum(dim=1) < MIN_CLASS_REFERENCES] = (
            0.0  # a class of few items uses all references
        )
        sizes = (1.0 - other_class).sum(dim=1).clamp_min(1.0)
        penalty = OTHER_CLASS_DISTANCE * other_class + sizes.log()[:, None]
        middle = z.mean(dim=0)
        references = (z - middle) * scale
        near = AnchoredPoints(references, class_means(references, labels, classes), penalty)
        return KernelDensityHead(self, near, middle, torch.tensor(scale))

    def restore(self, state: Mapping[str, Tensor]) -> KernelDensityHead:
        near = AnchoredPoints(state["near.points"], state["near.anchors"])
        head = KernelDensityHead(self, near, state["middle"], state["scale"])
        head.load_state_dict(dict(state))
        return head


class KernelDensityHead(Head):
    """Head of kernel density; each item is measured from the mean of the class that the model names."""

    def __init__(self, detector: KernelDensity, near: AnchoredPoints, middle: Tensor, scale: Tensor) -> None:
        super().__init__(detector)
        self.latent = detector.latent
        self.near = near  # points: references; anchors: means of classes; all scaled, from the middle
        self.register_buffer("middle", middle)  # [feature]
        self.register_buffer("scale", scale)
        self.middle: Tensor
        self.scale: Tensor

    def forward(self, evidence: Evidence) -> Tensor:
        """Return minus the log density [item]; larger is more suspicious."""
        named = evidence[Logits()].argmax(dim=1)
        squares = self.near((evidence[self.latent] - self.middle) * self.scale, named)
        density: Tensor = (-squares.ranked).logsumexp(dim=1) - squares.common
        return -density


def class_means(references: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean of each class's references [class, feature]; of a class without any, that of all, zero."""
    members = torch.nn.functional.one_hot(labels, classes).to(references.dtype)
    return members.T @ references / members.sum(dim=0).clamp_min(1.0)[:, None]


def pick(labels: Tensor, classes: int, references: int, generator: torch.Generator) -> Tensor:
    """Draw the indices of the references: max(2, references // classes) of each class, where it has as many."""
    share = max(2, references // classes)
    kept = []
    for k in range(classes):
        members = torch.nonzero(labels == k).squeeze(1)
        kept.append(members[torch.randperm(len(members), generator=generator)[:share]])
    return torch.cat(kept)


def typical_distance(z: Tensor, labels: Tensor) -> float:
    """Return the median distance between items of one class, or of any where no class has two.

    Raises DataError for fewer than two items.
    """
    if len(z) < 2:
        raise DataError(f"kernel_density needs at least two clean items; got {len(z)}")
    distances = [torch.pdist(z[labels == k]) for k in labels.unique() if int((labels == k).sum()) > 1]
    return max(float(torch.cat(distances or [torch.pdist(z)]).median()), 1e-6)


def kernel_density(taps: Sequence[str], *, bandwidth: float = 0.5, references: int = 1000) -> Detector:
    return KernelDensity(Latent(taps[-1]), bandwidth, references)
