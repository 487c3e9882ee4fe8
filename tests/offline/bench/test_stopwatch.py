"""The stopwatch, against a clock that only the contenders move."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from guard.offline.bench.stopwatch import BURST_S, MIN_ROUNDS, WARM_UP_CALLS, Laps, calls_in, race, spread, turns


class Fake:
    """A clock, and contenders that take a stated time on it."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[str] = []

    def __call__(self) -> int:
        return self.now

    def takes(self, name: str, nanoseconds: int) -> Callable[[], None]:
        def work() -> None:
            self.now += nanoseconds
            self.calls.append(name)

        return work


def test_microseconds_a_call_are_what_the_clock_says() -> None:
    fake = Fake()
    laps = race({"short": fake.takes("short", 20_000), "long": fake.takes("long", 5_000_000)}, seconds=0, clock=fake)
    assert laps.rounds == MIN_ROUNDS
    assert (laps.of("short") == 20).all()
    assert (laps.of("long") == 5000).all()


def test_short_calls_are_repeated_for_a_burst_and_long_ones_are_not() -> None:
    fake = Fake()
    assert calls_in(fake.takes("short", 100_000), fake) == round(BURST_S * 1e9 / 100_000)
    assert calls_in(fake.takes("long", 5_000_000), fake) == 1
    assert fake.calls == ["short"] * (WARM_UP_CALLS + 1) + ["long"] * (WARM_UP_CALLS + 1)


def test_contenders_take_turns() -> None:
    fake = Fake()
    race({name: fake.takes(name, 5_000_000) for name in "abc"}, seconds=0, clock=fake)
    measured = fake.calls[3 * (WARM_UP_CALLS + 1) :]
    assert [sorted(measured[i : i + 3]) for i in range(0, len(measured), 3)] == [["a", "b", "c"]] * MIN_ROUNDS


def test_everyone_is_first_and_last_equally_often() -> None:
    orders = [turns(4, number) for number in range(8)]
    assert sorted(order[0] for order in orders) == sorted(order[-1] for order in orders) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_nothing_is_collected_while_the_clock_runs() -> None:
    seen: list[bool] = []
    fake = Fake()
    work = fake.takes("it", 5_000_000)

    def look() -> None:
        seen.append(gc.isenabled())
        work()

    assert gc.isenabled()
    race({"it": look}, seconds=0, clock=fake)
    assert not any(seen[WARM_UP_CALLS + 1 :])
    assert gc.isenabled()


def test_collection_comes_back_when_a_contender_fails() -> None:
    left = [WARM_UP_CALLS + 3]

    def fail() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        race({"it": fail}, seconds=0)
    assert gc.isenabled()


def test_a_spread_is_median_and_quartiles() -> None:
    found = spread(np.asarray([1.0, 2.0, 3.0, 4.0, 100.0]))
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert found.relative == pytest.approx(2 / 3)


def test_laps_are_found_by_name() -> None:
    laps = Laps(("a", "b"), np.asarray([[1.0, 2.0], [3.0, 4.0]]))
    assert laps.of("b").tolist() == [2.0, 4.0]
