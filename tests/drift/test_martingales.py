"""The two martingales: the law of a bet exactly, the promise by simulation, and the power to see what changed."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from guard.drift.kernel_martingale import KernelMartingale
from guard.drift.rank_martingale import CHANCES, CUTS, RankMartingale, events
from tests.drift.clean_replay import alarm_shares, first_alarms

EDGES = np.asarray([0.0, *CUTS, 1.0])


def test_events_are_counted_by_hand() -> None:
    found = dict(zip(CHANCES.tolist(), events(np.asarray([[0.0005, 0.05, 0.5, 0.9992]]))[0].tolist(), strict=True))
    assert found[0.001] == 1
    assert found[0.1] == 2
    assert found[0.7] == 3
    assert found[0.999] == 3
    assert found[0.2] == 3  # p < 0.1 or p >= 0.9
    assert found[0.01] == 2


def test_a_bet_wins_nothing_on_average() -> None:
    """Over all places of two items, weighed by their chance where p is uniform, wealth stays what it is: exactly."""
    past = np.random.default_rng(0).beta(0.5, 1.0, (1, 40))
    expected = 0.0
    for first, second in product(range(len(EDGES) - 1), repeat=2):
        martingale = RankMartingale(1)
        martingale.see(past)
        before = martingale.log_wealth[0]
        chance = float(np.diff(EDGES)[first] * np.diff(EDGES)[second])
        martingale.see((EDGES[[[first, second]]] + EDGES[[[first + 1, second + 1]]]) / 2)
        expected += chance * np.exp(martingale.log_wealth[0] - before)
    assert expected == pytest.approx(1.0)


def test_a_kernel_bet_wins_what_it_loses_with_earlier_and_later_exchanged() -> None:
    def bet(*, exchanged: bool) -> float:
        generator = np.random.default_rng(3)
        martingale = KernelMartingale(generator.standard_normal((100, 2)), np.random.default_rng(4))
        martingale.see(generator.standard_normal((50, 2)) + 1.0)  # so that the witness knows something
        martingale.pool[:] = generator.standard_normal((1, 2))  # whatever place is drawn
        later = generator.standard_normal((1, 2))
        if exchanged:
            later, martingale.pool[:] = martingale.pool[:1].copy(), later
        before = martingale.log_wealth
        martingale.see(np.concatenate([later, later]))
        return float(np.exp(martingale.log_wealth - before))

    assert bet(exchanged=False) != pytest.approx(1.0)
    assert (bet(exchanged=False) + bet(exchanged=True)) / 2 == pytest.approx(1.0)


def test_on_clean_streams_alarms_stay_within_the_promise_and_a_fixed_set_breaks_it() -> None:
    """400 runs of 20,000 items, looked at after every 50, at a promise of 5 %; a fixed set of 300 alarms far more."""
    population = np.random.default_rng(0).integers(64, size=100_000)
    kept = alarm_shares(first_alarms(population, runs=400, items=20_000, calibration_items=300, seed=1), [20_000], 0.05)
    fixed = first_alarms(population, runs=50, items=20_000, calibration_items=300, seed=1, fixed=True)
    assert kept[20_000] <= 0.05
    assert alarm_shares(fixed, [20_000], 0.05)[20_000] > 0.9


@pytest.mark.parametrize("before", [0, 5000])
def test_a_shift_is_seen_soon_whenever_it_comes(before: int) -> None:
    generator = np.random.default_rng(before)
    clean, shifted = generator.integers(64, size=before + 1000), generator.integers(16, 80, size=2000).clip(0, 63)
    stream = np.concatenate([clean[1000:], shifted])
    found = first_alarms(stream, runs=1, items=len(stream), reference=clean[:1000], seed=0)
    assert before < float(found.at(0.01)[0]) <= before + 400


def test_the_kernel_sees_a_correlation_that_no_single_score_shows() -> None:
    generator = np.random.default_rng(0)
    pool = generator.standard_normal((1000, 2))
    martingale = KernelMartingale(pool, generator)
    items = 0
    while martingale.log_wealth < np.log(100) and items < 20_000:
        first = generator.standard_normal((50, 1))
        block = np.concatenate([first, 0.9 * first + np.sqrt(1 - 0.81) * generator.standard_normal((50, 1))], axis=1)
        martingale.see(block)
        items += 50
    assert items < 4000


def test_kernels_of_clean_streams_keep_the_promise() -> None:
    alarms = 0
    for run in range(100):
        generator = np.random.default_rng(run)
        martingale = KernelMartingale(generator.standard_normal((200, 3)), generator)
        highest = -np.inf
        for _ in range(60):
            martingale.see(generator.standard_normal((50, 3)))
            highest = max(highest, martingale.log_wealth)
        alarms += highest >= np.log(10)
    assert alarms <= 10  # promised: 10 % of the runs
