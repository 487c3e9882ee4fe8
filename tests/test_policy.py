"""p-values and settings make a verdict, and a caller learns no more than that."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from guard.policy import GRAVITY, Action, Mode, Policy, decide, repaired

POLICY = Policy(reject_rate=0.01, flag_rate=0.05)


@pytest.mark.parametrize(
    ("p", "action"),
    [
        (0.001, Action.REJECT),
        (0.01, Action.REJECT),
        (0.011, Action.FLAG),
        (0.05, Action.FLAG),
        (0.051, Action.PASS),
        (1.0, Action.PASS),
    ],
)
def test_a_p_value_at_a_rate_is_beyond_it(p: float, action: Action) -> None:
    assert POLICY.judge(p) is action


def test_repair_takes_the_place_of_flag_and_of_nothing_else() -> None:
    policy = replace(POLICY, repair="median")
    assert [policy.judge(p) for p in (0.001, 0.03, 0.5)] == [Action.REJECT, Action.REPAIR, Action.PASS]


def test_judging_is_monotone() -> None:
    gravities = [GRAVITY[POLICY.judge(p / 1000)] for p in range(1, 1001)]
    assert gravities == sorted(gravities, reverse=True)
    assert set(gravities) == {GRAVITY[action] for action in (Action.PASS, Action.FLAG, Action.REJECT)}


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("judged", Action)
def test_what_each_mode_lets_happen(mode: Mode, judged: Action) -> None:
    happens = replace(POLICY, mode=mode).enact(judged)
    expected = {
        "enforce": judged,
        "flag": Action.PASS if judged is Action.PASS else Action.FLAG,
        "shadow": Action.PASS,
        "off": Action.PASS,
    }
    assert happens is expected[mode]


def test_a_request_is_as_grave_as_its_gravest_item() -> None:
    verdict = decide([0.9, 0.03, 0.001], POLICY)
    assert verdict.items == (Action.PASS, Action.FLAG, Action.REJECT)
    assert verdict.request is Action.REJECT
    assert decide([0.9, 0.03], replace(POLICY, repair="median")).request is Action.REPAIR
    assert decide([], POLICY).request is Action.PASS


def test_a_request_as_a_whole_has_a_p_value_of_its_own() -> None:
    policy = replace(POLICY, rows="request")
    assert decide([0.001, 0.5], policy, request_p_value=0.2).request is Action.PASS
    assert decide([0.001, 0.5], policy, request_p_value=0.005).request is Action.REJECT
    with pytest.raises(ValueError, match="p-value is missing"):
        decide([0.5], policy)


def test_what_cannot_be_repaired_is_rejected_and_nothing_else() -> None:
    verdict = decide([0.9, 0.03, 0.03], replace(POLICY, repair="median"))
    assert repaired(verdict, [True, True, True]) == verdict
    tried = repaired(verdict, [True, False, True])
    assert tried.items == (Action.PASS, Action.REJECT, Action.REPAIR)
    assert tried.request is Action.REJECT


def test_gravity_orders_the_actions() -> None:
    assert sorted(Action, key=GRAVITY.__getitem__) == [Action.PASS, Action.FLAG, Action.REPAIR, Action.REJECT]
