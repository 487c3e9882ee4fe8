"""The limits of an evaluation: items, steps, and the time that it has."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from guard.offline.adversary.descent import METHODS
from guard.offline.adversary.directions import Method
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.parallel import OWN_THREADS
from guard.offline.work.tasks import Executor

MIN_PROOF_ITEMS, MIN_PROOF_STEPS, FEW_PROOF_STEPS = 30, 20, 60


@dataclass(frozen=True)
class Size:
    """The size of an adaptive attack: how many items are attacked, for how many steps."""

    items: int
    steps: int

    def shrunk(self, seconds: float, per_item_step: float) -> Size:
        """Return the size that fits into the seconds.

        First there are fewer steps down to FEW_PROOF_STEPS, then fewer items, then fewer steps again.
        """
        affordable = seconds / max(per_item_step, 1e-9)
        steps = min(self.steps, max(int(affordable / self.items) - 1, min(FEW_PROOF_STEPS, self.steps)))
        items = min(self.items, max(int(affordable / (steps + 1)), min(MIN_PROOF_ITEMS, self.items)))
        steps = min(steps, max(int(affordable / items) - 1, min(MIN_PROOF_STEPS, self.steps)))
        return Size(items, steps)


@dataclass(frozen=True)
class Effort:
    """The limits of one evaluation: items, steps and a deadline."""

    attack_items: int  # clean items that each attack is tried on; more where too few fool the model
    adaptive_items: int
    adaptive_steps: int
    seed: int
    work: WorkDirectory
    deadline: float | None = None  # of `time.monotonic()`; the adaptive attack is sized to end by then
    shift_items: int = 1000  # clean items that are shifted, at most
    methods: tuple[Method, ...] = METHODS  # of the adaptive attack
    checked: bool = False  # whether stronger attacks than the adaptive one are tried on some of its items
    cuts: tuple[str, ...] = ()  # what was cut of guard and report, in words
    executor: Executor = OWN_THREADS  # what attacks the items

    def seconds_left(self) -> float:
        return math.inf if self.deadline is None else self.deadline - time.monotonic()
