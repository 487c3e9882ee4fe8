"""The outcome of inspecting one request: what is decided, or that the model's answer is needed for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.answer_evidence import AnswerCalibration
from guard.judge import Inspection
from guard.serve.guarded_model import GuardedModel


@dataclass(frozen=True)
class Outcome:
    """The result of inspecting one request."""

    model: str  # metric label
    action: str  # of the request: an Action, would_*, or unchecked
    items: tuple[str, ...]  # of each item
    told: str
    guarded: GuardedModel | None = None  # where it was inspected
    prediction: NDArray[np.int64] | None = None  # ours, where the upstream sees the same input
    found: Inspection | None = None  # where it was inspected
    reason: str = ""  # where it passes unchecked, or is refused without an inspection

    @property
    def answered(self) -> bool:
        """Whether the model has seen, or may have seen, the request before the verdict."""
        return self.guarded is not None and self.guarded.config.forward != "after"


@dataclass(frozen=True, eq=False)
class Undecided:
    """A request that the programs do not reject, and whose verdict waits for the model's answer."""

    guarded: GuardedModel
    found: Inspection
    answers: AnswerCalibration
