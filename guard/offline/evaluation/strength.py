"""The checks that the adaptive attack has come to its end: more steps, restarts or budget must not change its verdict.

Rule 1: some of the row's own items are attacked again, and every comparison is between the same items.
Rule 2: what only the stronger attack gets through is held against the row; so is what the stronger attack loses.

Source: Carlini et al. 2019, arXiv:1902.06705, sections 4.3 (more iterations), 4.4 (larger budgets), 5.2 (restarts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from guard.offline.adversary.descent import descents_of
from guard.offline.adversary.directions import Method
from guard.offline.adversary.runs import START_POINTS, Adversary, Aim, MethodResults, StepReporter
from guard.offline.findings.attack_names import spoken_budget
from guard.offline.findings.evaluation import StrengthRow
from guard.offline.findings.intervals import Rate

CHECKED_SHARE = 0.2  # of a row's items
STEPS_FACTOR = 10
RESTART_POINTS = 5  # random points from which the items are attacked that did not get through
BUDGET_FACTOR = 2.0  # where the recipe has one budget, and so no second row to compare with
CHECK_POINTS = STEPS_FACTOR * START_POINTS + RESTART_POINTS  # that a checked item descends from, in the row's steps


def check_starts(budgets: int) -> float:
    """Return from how many points, for each item of the row, the checks descend at most.

    Ten times the steps count as ten points.
    """
    return CHECKED_SHARE * (CHECK_POINTS + (START_POINTS if budgets == 1 else 0))


@dataclass(frozen=True)
class StrengthCheck:
    """A row's attack and its outcome, to be tried again with more on the first of its items."""

    adversary: Adversary
    aim: Aim  # the guard at the rate that the row aims at, and at no further one: what gets through leaves
    start: NDArray[np.float32]  # [item, ...]
    budget: float
    outcome: MethodResults
    shown: StepReporter

    @property
    def items(self) -> int:
        """The number of items that are tried again."""
        return max(1, round(CHECKED_SHARE * len(self.adversary.items)))

    @property
    def through(self) -> Tensor:
        """Whether the row's attack gets through [item], by whichever method."""
        return self.outcome.best.success[: self.items]

    @property
    def method(self) -> Method:
        """The method that gets through most often of those that cost least, the first named of equals."""
        by_method = self.outcome.by_method
        return max(cheapest(tuple(by_method)), key=lambda method: int(by_method[method].success.sum()))

    def more_steps(self) -> StrengthRow:
        """Attack the items again with ten times the steps, from the same points."""
        return self.again(f"{STEPS_FACTOR} times the steps", self.budget, STEPS_FACTOR * self.adversary.steps)

    def wider(self, grid: int | None) -> StrengthRow:
        """Attack the items again within twice the budget."""
        budget = BUDGET_FACTOR * self.budget
        row = self.again(f"a budget of {spoken_budget(budget, grid)}", budget, self.adversary.steps)
        return replace(row, wider=True)

    def again(self, what: str, budget: float, steps: int) -> StrengthRow:
        few = replace(self.adversary, items=self.adversary.items.take(slice(self.items)), steps=steps)
        found = few.run(self.aim, self.method, self.start[: self.items], budget, self.shown)
        alone = self.outcome.by_method[self.method].success[: self.items]
        return compared(what, self.through, found.success, alone)

    def more_restarts(self) -> StrengthRow:
        """Attack the items that did not get through from further random points; the others stay as they are."""
        left = (~self.through).nonzero()[:, 0]
        stronger = self.through.clone()
        few = replace(self.adversary, items=self.adversary.items.take(left.numpy()))
        for number in range(1, RESTART_POINTS + 1):
            if len(left):
                once = replace(few, seed=self.adversary.seed + number)
                stronger[left] |= once.run(self.aim, self.method, None, self.budget, self.shown).success
        return compared(f"{RESTART_POINTS} more restarts", self.through, stronger, self.through)


def cheapest(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Return the methods that descend least often from each point: the checks cost many times a row's descents."""
    least = min(map(descents_of, methods))
    return tuple(method for method in methods if descents_of(method) == least)


def compared(what: str, base: Tensor, stronger: Tensor, alone: Tensor) -> StrengthRow:
    """Compare a stronger attack with the row's, both by items that get through [item] bool.

    It may lose only what the same method alone, `alone` [item], got through.
    """
    gained, lost = stronger & ~base, alone & ~stronger
    return StrengthRow(what, share(base), share(stronger), share(gained), share(lost))


def share(found: Tensor) -> Rate:
    """Return the share of true outcomes [item] bool, with its interval."""
    return Rate.of(found.numpy())


def wider_rows(outcomes: Mapping[float, MethodResults], grid: int | None) -> Mapping[float, tuple[StrengthRow, ...]]:
    """Compare each budget's outcome with the next smaller one's, on all items, by the larger budget."""
    rows: dict[float, tuple[StrengthRow, ...]] = {}
    for small, large in pairwise(sorted(outcomes)):
        base, found = outcomes[small].best.success, outcomes[large].best.success
        row = compared(f"this budget after {spoken_budget(small, grid)}", base, found, base)
        rows[large] = (replace(row, wider=True),)
    return rows


def least_through(outcomes: Mapping[float, MethodResults]) -> float:
    """Return the budget at which the least items get through, the smallest of equals: most is left to find there."""
    return min(sorted(outcomes), key=lambda budget: int(outcomes[budget].best.success.sum()))
