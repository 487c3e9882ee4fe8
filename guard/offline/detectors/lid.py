"""Local intrinsic dimensionality of the latents among clean references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard.errors import DataError
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.logistic import Logistic, fit_logistic
from guard.offline.evidence.kinds.plain import Latent
from guard.offline.evidence.needs import Evidence

MIN_SQUARED_DISTANCE = (
    1e-12  # added to squared distances: a reference that is met again is no neighbour at distance zero
)


@dataclass(frozen=True)
class Lid:
    """Detector that estimates in how many directions clean neighbours thin out around each latent.

    The maximum-likelihood estimate at every tap, weighed by a logistic regression on attacked items; without any, their
    mean.

    Source: Ma et al. 2018, arXiv:1801.02613, eq. 4 and algorithm 1. They draw another minibatch of 100 references for
    every input; ours are fixed, so that an input's score does not depend on when it comes.
    """

    name: ClassVar[str] = "lid"
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
        banks = [Bank(state[f"banks.{i}.references"]) for i in range(len(self.latents))]
        head = LidHead(self, banks, Logistic.mean(len(banks)))
        head.load_state_dict(dict(state))
        return head


class Bank(nn.Module):
    """Clean references of one tap, measured from their mean: far from zero float32 would lose the differences."""

    def __init__(self, references: Tensor) -> None:
        super().__init__()
        middle = references.mean(dim=0)
        self.register_buffer("references", references)  # [reference, feature]
        self.register_buffer("middle", middle)
        self.references: Tensor
        self.middle: Tensor

    def forward(self, latent: Tensor) -> Tensor:
        """Return squared distances to all references [item, reference]."""
        z, references = latent - self.middle, self.references - self.middle
        squares = (z * z).sum(dim=1, keepdim=True) + (references * references).sum(dim=1)
        return (squares - 2.0 * z @ references.T).clamp_min(0.0)


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
        found = []
        for latent, bank in zip(self.latents, self.banks, strict=True):
            nearest = bank(evidence[latent]).topk(self.neighbours + 1, dim=1, largest=False).values[:, 1:]
            logs = (nearest + MIN_SQUARED_DISTANCE).log()  # of squares: twice the logarithm of the distance
            found.append(-(0.5 * (logs[:, -1:] - logs).mean(dim=1)).clamp_min(1e-6).log())
        return torch.stack(found, dim=1)


def lid(taps: Sequence[str], *, neighbours: int = 20, references: int = 1000) -> Detector:
    return Lid(tuple(Latent(tap) for tap in taps), neighbours, references)
