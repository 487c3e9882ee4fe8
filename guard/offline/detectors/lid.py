"""Local intrinsic dimensionality of the latents among clean references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard.errors import DataError
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.distances import AnchoredPoints, spread_anchors
from guard.offline.detectors.parts.logistic import Logistic, fit_logistic
from guard.offline.evidence.kinds.plain import Latent
from guard.offline.evidence.needs import Evidence

MIN_DISTANCE_SHARE = 1e-6  # of the references' spread, added: one that is met again is no neighbour at distance zero
MIN_MEAN_LOG = 1e-6  # of the neighbours' distances below the last: a million dimensions, and neighbours all as far
ANCHOR_POINTS = 32  # from which distances are measured


@dataclass(frozen=True)
class Lid:
    """Detector that estimates in how many directions clean neighbours thin out around each latent.

    The maximum-likelihood estimate at every tap, weighed by a logistic regression on attacked items; without any, their
    mean.

    Source: Ma et al. 2018, arXiv:1801.02613, eq. 4 and algorithm 1. They draw another minibatch of 100 references for
    every input; ours are fixed, so that an input's score does not depend on when it comes.
    """

    name: ClassVar[str] = "lid"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = (
        StandIn("sorted distances to neighbours", "this step's neighbours, held"),
    )

    latents: tuple[Latent, ...]
    neighbours: int = 20
    references: int = 1000

    @property
    def needs(self) -> tuple[Latent, ...]:
        return self.latents

    def fit(self, examples: Examples) -> LidHead:
        items = len(examples.labels)
        if items <= self.neighbours + 1:
            raise DataError(f"lid looks at {self.neighbours} neighbours, and got {items} clean items to find them in")
        chosen = torch.randperm(items, generator=examples.generator)[: self.references]
        banks = [Bank(examples.clean[latent][chosen]) for latent in self.latents]
        head = LidHead(self, banks, Logistic.mean(len(banks)))
        clean, noisy = head.dimensions(examples.clean), head.dimensions(examples.noisy)
        attacked = examples.attacked.seen_as(head.dimensions(examples.attacked.items))
        return LidHead(self, banks, fit_logistic(clean, noisy, attacked))

    def restore(self, state: Mapping[str, Tensor]) -> LidHead:
        banks = [Bank(state[f"banks.{i}.near.points"]) for i in range(len(self.latents))]
        head = LidHead(self, banks, Logistic.mean(len(banks)))
        head.load_state_dict(dict(state))
        return head


class Bank(nn.Module):
    """Clean references of one tap, measured from their mean, with the least distance that counts."""

    def __init__(self, references: Tensor) -> None:
        super().__init__()
        middle = references.mean(dim=0)
        centred = references - middle
        self.near = AnchoredPoints(centred, spread_anchors(centred, ANCHOR_POINTS))
        spread = centred.square().sum(dim=1).mean().sqrt()
        self.register_buffer("middle", middle)
        self.register_buffer("floor", (MIN_DISTANCE_SHARE * spread).clamp_min(torch.finfo(spread.dtype).tiny))
        self.middle: Tensor
        self.floor: Tensor

    def forward(self, latent: Tensor, count: int) -> Tensor:
        """Return the distances [item, count] to the nearest references, in no order."""
        return self.near.nearest_distances(latent - self.middle, count)


class LidHead(Head):
    def __init__(self, detector: Lid, banks: list[Bank], weighing: Logistic) -> None:
        super().__init__(detector)
        self.latents, self.neighbours = detector.latents, detector.neighbours
        self.banks = nn.ModuleList(banks)
        self.weighing = weighing

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds of "attacked" [item]; larger is more suspicious."""
        score: Tensor = self.weighing(self.dimensions(evidence))
        return score

    def dimensions(self, evidence: Evidence) -> Tensor:
        """Return the logarithm of the estimated dimensionality at each tap [item, tap].

        A clean item that is its own nearest reference is measured by the neighbours beyond it: the nearest of all is
        left out for every input alike.
        """
        banks = [bank for bank in self.banks if isinstance(bank, Bank)]
        pairs = zip(self.latents, banks, strict=True)
        distances = torch.stack([bank(evidence[latent], self.neighbours + 1) for latent, bank in pairs], dim=1)
        logs = (distances + torch.stack([bank.floor for bank in banks])[:, None]).log()  # [item, tap, neighbour]
        behind = logs.amax(dim=2, keepdim=True) - logs  # of differences, so that equal distances are exactly that
        mean = (behind.sum(dim=2) - behind.amax(dim=2)) / self.neighbours  # without the nearest
        return -mean.clamp_min(MIN_MEAN_LOG).log()


def lid(taps: Sequence[str], *, neighbours: int = 20, references: int = 1000) -> Detector:
    return Lid(tuple(Latent(tap) for tap in taps), neighbours, references)
