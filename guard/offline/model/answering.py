"""What answers clients where a guard's graph is a student of it: its predictions, and how well the student knows them.

Rule 1: whose answer counts is the closed model's; whose gradient is read, and climbed by attacks, is the student's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Predict = Callable[[NDArray[np.float32]], NDArray[np.int64]]  # unit-space items [item, ...] -> classes [item]


@dataclass(frozen=True)
class Study:
    """The facts of a student's making, as bundle and report state them."""

    model: str  # the closed model, as it was named
    by: str  # what computed its answers
    questions: int  # items that it answered for the student
    items: int  # held-out clean items on which the two were compared
    agreed: float  # share of these on which both name the same class
    by_chance: float  # share on which answers as frequent as theirs would agree without knowing each other
    key: str  # of the student's weights in the work directory
    identity: str  # of the closed model: a digest of what its answers follow from

    @property
    def beyond_chance(self) -> float:
        """Cohen's kappa: the agreement beyond chance, as a share of what chance leaves."""
        return (self.agreed - self.by_chance) / (1 - self.by_chance) if self.by_chance < 1 else 1.0

    def __str__(self) -> str:
        return (
            f"{self.model} cannot be opened: answers are its own ({self.by}), gradient and layers are those of a "
            f"student that was distilled from {self.questions:,} of them; the two name the same class on "
            f"{self.agreed:.1%} of {self.items:,} held-out clean items ({self.beyond_chance:.0%} of what chance leaves)"
        )


@dataclass(frozen=True, eq=False)
class Answering:
    """A closed model behind its student."""

    predict: Predict = field(repr=False)
    study: Study

    @property
    def identity(self) -> str:
        """Digest of what the answers follow from."""
        return self.study.identity

    @property
    def facts(self) -> dict[str, Any]:
        """The study as a manifest and a report keep it; `gradient` says whose was used."""
        return {**vars(self.study), "beyond_chance": self.study.beyond_chance, "gradient": "student"}
