"""Detection over the budget: which items belong to a part, and what is counted in it."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from guard.offline.attacks.ranges import Range, places_of, to_steps
from guard.offline.evaluation.budget_curve import MAX_BUDGET_PARTS, budget_curve
from guard.offline.findings.attack_names import budgets_text
from guard.offline.findings.intervals import Promise

PROMISES = (Promise.of(0.001, 500), Promise.of(0.05, 500))


def crafted(budgets: Any, wrong: Any) -> Any:
    """As much of a crafted set as a curve looks at."""
    tried = np.asarray(budgets, dtype=np.float32)
    return SimpleNamespace(tried_budgets=tried, budgets=tried[np.asarray(wrong, dtype=bool)])


def test_items_are_counted_in_the_part_that_their_budget_lies_in() -> None:
    budgets = [0.01, 0.16, 0.02, 0.04, 0.08, 0.03]  # the edges are 0.02, 0.04 and 0.08
    wrong = np.asarray([0, 1, 1, 0, 1, 1], dtype=bool)
    p_value = np.asarray([0.001, 0.2, 0.04, 0.5])  # of the budgets 0.16, 0.02, 0.08 and 0.03
    parts = budget_curve(crafted(budgets, wrong), wrong, p_value, PROMISES)
    assert [(part.success.count, part.success.items) for part in parts] == [(0, 1), (2, 2), (0, 1), (2, 2)]
    caught = [part.caught[0.05] for part in parts]
    assert [(one.count, one.items) for one in caught if one] == [(0, 0), (0, 2), (0, 0), (2, 2)]
    assert [round(end, 6) for part in parts[1::2] for end in (part.low, part.high)] == [0.02, 0.03, 0.08, 0.16]
    assert parts[0].caught[0.001] is None, "500 clean items cannot promise it"


@pytest.mark.parametrize("budgets", [[0.1] * 5, [np.inf] * 5, []])
def test_without_a_range_there_is_no_curve(budgets: list[float]) -> None:
    wrong = np.ones(len(budgets), dtype=bool)
    assert budget_curve(crafted(budgets, wrong), wrong, np.full(len(budgets), 0.5), PROMISES) == ()


@pytest.mark.parametrize("seed", range(5))
def test_every_item_is_counted_once_and_parts_are_about_equally_full(seed: int) -> None:
    drawn = Range(0.25, 1.0).at(places_of(str(seed), [str(number) for number in range(400)])).numpy()
    wrong = np.random.default_rng(seed).random(400) < 0.7
    p_value = np.random.default_rng(seed).random(int(wrong.sum()))
    parts = budget_curve(crafted(drawn, wrong), wrong, p_value, PROMISES)
    assert len(parts) == MAX_BUDGET_PARTS
    assert all(70 <= part.success.items <= 130 for part in parts)
    assert sum(part.success.items for part in parts) == 400
    found = [part.caught[0.05] for part in parts]
    assert sum(one.items for one in found if one) == wrong.sum()
    assert sum(one.count for one in found if one) == (p_value <= 0.05).sum()
    assert all(one.high < other.low for one, other in pairwise(parts))


def test_whole_steps_of_the_grid_are_told_as_such() -> None:
    """1 to 16/255, where each item's budget is a whole number of steps."""
    span = Range(1 / 255, 16 / 255)
    drawn = to_steps(span, span.at(places_of("x", [str(number) for number in range(900)])), 1 / 255).numpy()
    wrong = np.ones(900, dtype=bool)
    parts = budget_curve(crafted(drawn, wrong), wrong, np.ones(900), PROMISES)
    texts = [budgets_text(part.low, part.high, "linf", 255) for part in parts]
    assert texts == ["1/255", "2 to 3/255", "4 to 7/255", "8 to 16/255"]


def test_a_range_of_two_steps_has_two_parts() -> None:
    wrong = np.ones(20, dtype=bool)
    parts = budget_curve(crafted([1 / 16] * 12 + [2 / 16] * 8, wrong), wrong, np.ones(20), PROMISES)
    assert [part.success.items for part in parts] == [12, 8]
