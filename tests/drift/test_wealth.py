"""The wealth of restarted strategies: nothing is won or lost by moving it, and memory stays small."""

from __future__ import annotations

import numpy as np
import pytest

from guard.drift.wealth import FIRST_OF_ALL_BLOCKS, Wealth, log10_evidence, slot_of


def test_slots_follow_the_example_of_the_function() -> None:
    assert [slot_of(block) for block in range(1, 13)] == [1, 3, 2, 5, 1, 4, 2, 7, 1, 3, 2, 6]


def test_a_slot_lives_four_times_its_period() -> None:
    starts: dict[int, list[int]] = {}
    for block in range(1, 4097):
        starts.setdefault(slot_of(block), []).append(block)
    for slot, blocks in starts.items():
        age = (slot - 1) // 2
        assert set(np.diff(blocks).tolist()) <= {2 ** (age + 2)}
    assert FIRST_OF_ALL_BLOCKS not in starts


def test_restarts_keep_the_sum_and_bets_change_it_by_what_they_win() -> None:
    generator = np.random.default_rng(0)
    wealth = Wealth(3, 2)
    for _ in range(300):
        before = np.exp(wealth.log_total)
        stakes = wealth.shares.copy()
        factors = generator.uniform(0.5, 1.5, stakes.shape)
        wealth.grow(factors)
        gain = (stakes * (factors - 1)).sum(axis=(1, 2))
        assert np.exp(wealth.log_total) == pytest.approx(before * (1 + gain))
        wealth.restart()
        assert wealth.shares.sum(axis=(1, 2)) + wealth.reserve == pytest.approx(np.ones(3))


def test_slots_grow_with_the_logarithm() -> None:
    wealth = Wealth(1, 1)
    for _ in range(20_000):
        wealth.restart()
    assert wealth.slots <= 2 * np.log2(20_000) + 3


def test_evidence_is_shared_among_tests() -> None:
    assert log10_evidence(np.log(1000.0), 10) == pytest.approx(2.0)
