"""The seam of every detector: it names evidence, is fitted on examples, and becomes a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from guard.offline.data.attacked import Attacked
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.evidence.needs import Evidence, Need


@dataclass(frozen=True)
class Examples:
    """Evidence to fit on. Clean and noisy items are negatives; attacked ones, where there are any, positives."""

    clean: Evidence
    labels: Tensor  # [item] true class of the clean items
    noisy: Evidence
    attacked: Attacked[Evidence]
    seed: int

    @property
    def generator(self) -> torch.Generator:
        """A fresh stream of this fit's randomness: each detector begins at the same place."""
        return torch.Generator().manual_seed(self.seed)

    def negatives(self, need: Need) -> Tensor:
        return torch.cat([self.clean[need], self.noisy[need]])

    def count_attacked(self) -> int:
        return len(self.attacked)


class Head(nn.Module):
    """A fitted detector: Evidence -> score [item]. `detector` names the evidence that it reads."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, evidence: Evidence) -> Tensor:
        """Score [item], in the paper's direction."""
        raise TypeError(f"{type(self).__name__} has no forward; it was given {len(evidence)} kinds of evidence")

    def __call__(self, evidence: Evidence) -> Tensor:
        score: Tensor = super().__call__(evidence)
        return score


class Detector(Protocol):
    """A question with its settings: a frozen value that prints as it is written in the recipe."""

    @property
    def name(self) -> str: ...

    @property
    def learns(self) -> bool:
        """Whether it finds out what to ask for before it is fitted."""
        ...

    @property
    def needs(self) -> tuple[Need, ...]: ...

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        """What an attacker differentiates in place of its head's steps; those of its needs are stated by them."""
        ...

    def fit(self, examples: Examples) -> Head:
        """Raises DataError when the examples cannot answer the question."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> Head:
        """The head whose `state_dict()` this is."""
        ...


class Ask(Protocol):
    """Needs -> their evidence, on the items that heads are fitted on."""

    def __call__(self, needs: Sequence[Need], *, most: int | None = None, clean_only: bool = False) -> Examples:
        """At most so many items of each kind; `clean_only` leaves noisy and attacked ones out."""
        ...


class LearningDetector(Detector, Protocol):
    """A detector that finds out what to ask for before it is fitted; its `learns` says so."""

    def learn(self, ask: Ask) -> Detector:
        """The detector whose `needs` are complete. Raises DataError when the examples cannot answer."""
        ...


def learns(detector: Detector) -> TypeGuard[LearningDetector]:
    """Whether a detector learns what to ask for."""
    return detector.learns


def one_hot_prediction(logits: Tensor) -> Tensor:
    """[item, class]: 1 at the class that the model names."""
    return nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)
