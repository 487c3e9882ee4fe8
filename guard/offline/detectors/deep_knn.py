"""Deep k-nearest neighbours: do the clean items nearest to each layer belong to the class that the model names?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, normalize, one_hot

from guard.errors import DataError
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.kernel_density import pick
from guard.offline.detectors.parts.answers import named_of
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.needs import Evidence

MIN_GAP = 1e-6  # added to how much nearer a neighbour is than the farthest: equal neighbours count alike

SOFT_DISTANCE = 0.1  # of cosines, over which an attacker's softmax falls by a factor of e


@dataclass(frozen=True)
class DeepKnn:
    """Detector that scores the share of a latent's nearest clean items that are of another class than the named one.

    The mean of that share over taps, by the cosine between latents measured from their clean mean. A neighbour counts
    by how much nearer it is, squared, than the first beyond, so that none comes or goes with a jump.

    Source: Papernot and McDaniel 2018, arXiv:1803.04765, section 3. They count neighbours alike, and rank the count
    among those of calibration items, which the guard's fusion does; k = n^0.4 is Raghuram et al.'s, arXiv:2007.15147.
    """

    name: ClassVar[str] = "deep_knn"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = (
        StandIn("nearest clean items", "this step's neighbours, and all others by a softmax of the cosine"),
        StandIn("class that the model names", "this step's class, held"),
    )

    latents: tuple[Latent, ...]
    neighbours: int = 16
    references: int = 1000  # clean items kept, spread evenly over the classes

    @property
    def needs(self) -> tuple[Latent | Logits, ...]:
        return (*self.latents, Logits())

    def fit(self, examples: Examples) -> DeepKnnHead:
        classes = examples.clean[Logits()].shape[1]
        keep = pick(examples.labels, classes, self.references, examples.generator)
        if len(keep) <= self.neighbours:
            raise DataError(
                f"deep_knn looks at {self.neighbours} neighbours, and got {len(keep)} clean items to find them in"
            )
        labels = one_hot(examples.labels[keep], classes).float()
        banks = []
        for latent in self.latents:
            middle = examples.clean[latent].mean(dim=0)
            banks.append(LabelledBank(normalize(examples.clean[latent][keep] - middle, dim=1), middle, labels))
        return DeepKnnHead(self, banks)

    def restore(self, state: Mapping[str, Tensor]) -> DeepKnnHead:
        parts = [f"banks.{i}." for i in range(len(self.latents))]
        names = ("references", "middle", "labels")
        return DeepKnnHead(self, [LabelledBank(*(state[part + name] for name in names)) for part in parts])


class LabelledBank(nn.Module):
    """Clean references of one tap, of length one [reference, feature], with their classes [reference, class]."""

    def __init__(self, references: Tensor, middle: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.register_buffer("references", references)
        self.register_buffer("middle", middle)
        self.register_buffer("labels", labels)
        self.references: Tensor
        self.middle: Tensor
        self.labels: Tensor

    def forward(self, latent: Tensor, named: Tensor, count: int) -> Tensor:
        """Return the share of other classes than the named one [item, class] among the nearest references [item].

        It is summed up from those of other classes, so that it is 0 exactly where there are none.
        """
        unit = normalize(latent - self.middle, dim=1)
        cosine = unit @ self.references.T
        chosen = cosine.topk(count + 1, dim=1, sorted=False).indices
        apart = (embedding(chosen, self.references) - unit[:, None]).square().sum(dim=2)  # precise between near points
        closer = apart.amax(dim=1, keepdim=True) - apart + MIN_GAP
        alike = (embedding(chosen, self.labels) * named[:, None]).sum(dim=2)
        share = (closer * (1.0 - alike)).sum(dim=1) / closer.sum(dim=1)
        if not latent.requires_grad:
            return share
        smooth = ((cosine / SOFT_DISTANCE).softmax(dim=1) * (named @ self.labels.T)).sum(dim=1)
        return share - (smooth - smooth.detach())  # where all neighbours are alike the share itself has no slope


class DeepKnnHead(Head):
    def __init__(self, detector: DeepKnn, banks: Sequence[LabelledBank]) -> None:
        super().__init__(detector)
        self.latents, self.neighbours = detector.latents, detector.neighbours
        self.banks = nn.ModuleList(banks)

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the mean share of neighbours of other classes [item], 0 to 1; larger is more suspicious."""
        logits = evidence[Logits()]
        named = named_of(logits).to(logits.dtype)
        pairs = zip(self.latents, self.banks, strict=True)
        return torch.stack([bank(evidence[latent], named, self.neighbours) for latent, bank in pairs]).mean(dim=0)


def deep_knn(taps: Sequence[str], *, neighbours: int = 16, references: int = 1000) -> Detector:
    return DeepKnn(tuple(Latent(tap) for tap in taps), neighbours, references)
