"""Seam of every detector: it names evidence, is fitted on examples, and becomes a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from guard.offline.data.attacked import Attacked
from guard.offline.data.kind_names import Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.evidence.needs import Evidence, Need


@dataclass(frozen=True)
class Examples:
    """Evidence to fit on: clean and noisy items are negatives, attacked ones, where there are any, positives."""

    clean: Evidence
    labels: Tensor  # [item] true class of the clean items
    noisy: Evidence
    attacked: Attacked[Evidence]
    seed: int

    @property
    def generator(self) -> torch.Generator:
        """Fresh random generator of this fit: every detector draws from the same seed."""
        return torch.Generator().manual_seed(self.seed)

    def negatives(self, need: Need) -> Tensor:
        return torch.cat([self.clean[need], self.noisy[need]])

    def count_attacked(self) -> int:
        return len(self.attacked)


class Head(nn.Module):
    """Fitted detector: Evidence -> score [item]. `detector` names the evidence that it reads."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the score [item], in the paper's direction."""
        raise TypeError(f"{type(self).__name__} has no forward; it was given {len(evidence)} kinds of evidence")

    def __call__(self, evidence: Evidence) -> Tensor:
        score: Tensor = super().__call__(evidence)
        return score


class Detector(Protocol):
    """Detector with its settings: a frozen value that prints as it is written in the recipe."""

    @property
    def name(self) -> str: ...

    @property
    def kinds(self) -> Kinds:
        """Kinds of input that it applies to."""
        ...

    @property
    def learns(self) -> bool:
        """Whether the detector finds out what it needs before it is fitted."""
        ...

    @property
    def needs(self) -> tuple[Need, ...]: ...

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        """Surrogates that an attacker differentiates in place of its head's steps; its needs state their own."""
        ...

    def fit(self, examples: Examples) -> Head:
        """Fit the head. Raises DataError when the examples do not suffice for this detector."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> Head:
        """Return the head that has this `state_dict()`."""
        ...


class Ask(Protocol):
    """Function that gathers the evidence of needs on the items that heads are fitted on."""

    def __call__(self, needs: Sequence[Need], *, most: int | None = None, clean_only: bool = False) -> Examples:
        """Gather evidence of at most `most` items of each kind; `clean_only` leaves noisy and attacked ones out."""
        ...


class LearningDetector(Detector, Protocol):
    """Detector that finds out what it needs before it is fitted; its `learns` says so."""

    def learn(self, ask: Ask) -> Detector:
        """Return the detector with complete `needs`. Raises DataError when the examples do not suffice."""
        ...


def learns(detector: Detector) -> TypeGuard[LearningDetector]:
    """Return whether a detector finds out what it needs before it is fitted."""
    return detector.learns
