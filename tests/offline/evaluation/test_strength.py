"""Stronger attacks on the same items: one that was stopped too early is found, and so is one that loses ground."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from guard.offline.adversary.descent import AdaptiveResult
from guard.offline.adversary.runs import Adversary, Aim, MethodResults
from guard.offline.data.dataset import Dataset
from guard.offline.evaluation.strength import (
    RESTART_POINTS,
    STEPS_FACTOR,
    StrengthCheck,
    cheapest,
    check_starts,
    compared,
    least_through,
    wider_rows,
)
from guard.offline.findings.evaluation import StrengthRow
from guard.offline.findings.intervals import Rate
from guard.offline.work.store import ResultStore

ITEMS = 100
BUDGET = 0.25


def wall(images: Tensor) -> tuple[Tensor, Tensor]:
    """A model that is fooled once every value has risen by 0.2, and a guard that passes everything."""
    mean = images.flatten(1).mean(dim=1)
    return torch.stack([0.6 - mean, mean - 0.6], dim=1) * 20, 0 * mean[:, None] - 1


def tried(steps: int, store: ResultStore) -> StrengthCheck:
    images = np.full((ITEMS, 1, 4, 4), 0.4, dtype=np.float32)
    items = Dataset(images, np.zeros(ITEMS, dtype=np.int64), np.asarray([f"{n:064d}" for n in range(ITEMS)]))
    adversary, aim = Adversary(items, steps, 0, None, "any", store), Aim("guard", wall, ("selective",))
    outcome = adversary.attack(aim, images, BUDGET, lambda *_: None)
    return StrengthCheck(adversary, aim, images, BUDGET, outcome, lambda *_: None)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    return ResultStore(tmp_path_factory.mktemp("runs"))


def test_a_crippled_attack_is_found_by_ten_times_its_steps(store: ResultStore) -> None:
    """One step goes half the way; ten reach the wall on every item."""
    row = tried(1, store).more_steps()
    assert (row.base.count, row.stronger.count, row.gained.count, row.lost.count) == (0, 20, 20, 0)
    assert row.doubt is not None
    assert "has not come to its end (10 times the steps: through on 20 of 20 items, not 0)" in row.doubt


def test_an_attack_that_is_done_gains_nothing(store: ResultStore) -> None:
    done = tried(20, store)
    for row in (done.more_steps(), done.more_restarts(), done.wider(None)):
        assert (row.base.count, row.stronger.count, row.gained.count, row.lost.count) == (20, 20, 0, 0)
        assert row.doubt is None
    assert done.wider(None).what == "a budget of 0.5"


def test_restarts_are_of_what_did_not_get_through_each_from_its_own_point(store: ResultStore) -> None:
    crippled = tried(1, store)
    calls: list[tuple[int, int]] = []
    known = crippled.aim.known

    def heard(images: Tensor) -> tuple[Tensor, Tensor]:
        calls.append((len(images), int((images[0] * 1e6).sum())))
        return known(images)

    half = crippled.outcome.by_method["selective"]
    half.fooled[::2] = True
    spied = replace(crippled, aim=replace(crippled.aim, name="spied", known=heard))
    row = spied.more_restarts()
    assert (row.base.count, row.lost.count) == (10, 0)
    assert sum(count for count, _ in calls) == RESTART_POINTS * 10 * 2, "one step, and the point it ends at"
    assert len({point for _, point in calls}) == len(calls), "no two begin alike"


def outcome(through: list[bool]) -> MethodResults:
    fooled = torch.tensor(through)
    return MethodResults(
        {"selective": AdaptiveResult(torch.zeros(len(through), 1), fooled, torch.full((len(through), 1), -1.0))}
    )


def test_a_larger_budget_that_gets_less_through_is_held_against_its_row() -> None:
    small, large = outcome([True] * 15 + [False] * 5), outcome([True] * 9 + [False] * 11)
    (row,) = wider_rows({0.1: small, 0.2: large}, None)[0.2]
    assert (row.base.count, row.stronger.count, row.lost.count) == (15, 9, 6)
    assert row.doubt == (
        "it weakens when it should not (this budget after 0.1: through on 9 of 20 items, not 15; 6 are lost)"
    )
    (other,) = wider_rows({0.2: small, 0.1: large}, None)[0.2]
    assert other.doubt is None, "to gain by a larger budget is no surprise"
    assert wider_rows({0.1: small}, None) == {}
    assert least_through({0.1: small, 0.2: large}) == 0.2
    assert least_through({0.2: small, 0.1: small}) == 0.1


@pytest.mark.parametrize(("changed", "doubted"), [(1, False), (3, False), (6, True)])
def test_few_items_say_nothing(changed: int, *, doubted: bool) -> None:
    base = torch.arange(20) < 10
    more, fewer = torch.arange(20) < 10 + changed, torch.arange(20) < 10 - changed
    for stronger in (more, fewer):
        assert (compared("more", base, stronger, base).doubt is not None) is doubted


def test_what_another_method_found_is_not_lost() -> None:
    both, alone = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    assert compared("more", both, alone, alone).lost.count == 0


def test_the_checks_take_a_method_that_descends_once_from_each_point() -> None:
    assert cheapest(("several_targets", "adapted", "selective")) == ("adapted", "selective")
    assert cheapest(("several_targets",)) == ("several_targets",)


def test_the_cost_is_a_share_of_the_items() -> None:
    assert check_starts(2) == pytest.approx(0.2 * (2 * STEPS_FACTOR + RESTART_POINTS))
    assert check_starts(1) > check_starts(2)


def test_a_doubt_needs_its_interval() -> None:
    none = Rate.counted(0, 20)
    row = StrengthRow("more", Rate.counted(5, 20), Rate.counted(12, 20), Rate.counted(7, 20), none)
    assert row.doubt is not None
    assert replace(row, wider=True).doubt is None
