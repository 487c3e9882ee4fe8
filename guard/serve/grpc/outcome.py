"""What became of a ModelInfer request before it is forwarded: decided, or undecided until the model has answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.answer_evidence import AnswerCalibration
from guard.judge import Inspection
from guard.serve.guarded_model import GuardedModel


@dataclass(frozen=True)
class Outcome:
    """The result of inspecting one ModelInfer request, before it is forwarded."""

    model: str  # metric label
    action: str  # of the request: an Action, would_*, or unchecked
    items: tuple[str, ...]  # of each item
    forward: bytes  # what the upstream gets
    told: str
    guarded: GuardedModel | None = None  # where it was inspected
    prediction: NDArray[np.int64] | None = None  # ours, where the upstream sees the same input

    @property
    def answered(self) -> bool:
        """Whether the model has seen, or may have seen, the request before the verdict."""
        return self.guarded is not None and self.guarded.inspector.answers is not None


@dataclass(frozen=True, eq=False)
class Undecided:
    """A request that the programs do not reject, and whose verdict waits for the model's answer."""

    request: bytes
    guarded: GuardedModel
    found: Inspection
    answers: AnswerCalibration
