"""Shedding at the door, by made-up clocks: what can be answered comes in, what cannot does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from guard.errors import Overloaded
from guard.serve.admission import FULL_TIME_SHARE, REFILL_SHARE, USABLE_TIME_SHARE, Admission, Place


@dataclass
class Guard:
    """One device that takes `each_s` for a call, whatever else waits, and an admission in front of it."""

    each_s: float
    admission: Admission = field(default_factory=Admission)
    now: float = 100.0
    free_at: float = 100.0
    waiting: list[tuple[float, float, Place]] = field(default_factory=list)  # done at, deadline, place
    answered: int = 0
    late: int = 0
    refused: int = 0

    def arrive(self, deadline_s: float) -> None:
        try:
            place = self.admission.enter(self.now, deadline_s)
        except Overloaded:
            self.refused += 1
            return
        self.free_at = max(self.free_at, self.now) + self.each_s
        self.waiting.append((self.free_at, self.now + deadline_s, place))

    def until(self, then: float) -> None:
        while self.waiting and self.waiting[0][0] <= then:
            done_at, deadline, place = self.waiting.pop(0)
            in_time = done_at <= deadline
            place.leave(done_at, inspected=True)
            self.answered += in_time
            self.late += not in_time
        self.now = then

    def offer(self, rate: float, deadline_s: float, seconds: float) -> None:
        for number in range(int(rate * seconds)):
            self.until(100.0 + number / rate)
            self.arrive(deadline_s)
        self.until(self.now + 60.0)


@pytest.mark.parametrize("deadline_s", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("times", [1.0, 2.0, 4.0])
def test_a_device_that_is_offered_too_much_stays_at_its_capacity(deadline_s: float, times: float) -> None:
    guard = Guard(each_s=0.0025)
    guard.offer(400 * times * 0.98, deadline_s, 10)
    capacity = 400 * 10
    assert guard.answered >= 0.9 * min(capacity, 400 * times * 0.98 * 10)
    assert guard.late <= 0.02 * capacity
    assert guard.admission.inside == 0


def test_an_idle_guard_refuses_nothing_whatever_it_has_seen() -> None:
    guard = Guard(each_s=0.5)
    guard.offer(20, 1.0, 10)
    assert guard.refused > 0
    guard.admission.enter(guard.now, 0.001)


def test_a_burst_is_taken_as_far_as_it_can_be_answered() -> None:
    guard = Guard(each_s=0.0025)
    guard.offer(300, 0.25, 5)
    before = guard.answered
    for _ in range(400):
        guard.arrive(0.25)
    guard.until(guard.now + 10)
    assert 0.5 * USABLE_TIME_SHARE * 0.25 / 0.0025 <= guard.answered - before <= 0.25 / 0.0025


def test_the_model_servers_time_counts() -> None:
    admission = Admission()
    for _ in range(100):
        admission.forwarded(0.2)
    admission.enter(0.0, 0.1)
    with pytest.raises(Overloaded):
        admission.enter(0.0, 0.1)
    admission.enter(0.0, 1.0)


def test_a_place_is_left_once() -> None:
    admission = Admission()
    place = admission.enter(0.0, 1.0)
    place.leave(0.1, inspected=True)
    place.leave(0.2, inspected=False)
    place.tear()
    assert admission.inside == 0


def test_those_ahead_count_and_whoever_has_no_time_left_does_not_come_in() -> None:
    guard = Guard(each_s=0.0025)
    guard.offer(400, 0.25, 3)
    admission = guard.admission
    assert admission.is_in_time(0.25)
    assert admission.is_in_time(0.25, ahead=40)
    assert not admission.is_in_time(0.25, ahead=120)
    assert not admission.is_in_time(0.0)


def begun(admission: Admission, now: float, remaining_s: float) -> list[Place]:
    """The places of the calls that begin at once, of as many as want to."""
    places = []
    while admission.may_begin(now, remaining_s):
        places.append(admission.enter(now, remaining_s))
    return places


def test_calls_that_can_wait_begin_in_bursts() -> None:
    guard = Guard(each_s=0.0025)
    guard.offer(400, 0.25, 3)
    admission, now = guard.admission, guard.now
    places = begun(admission, now, 0.05)
    most = admission.most_inside(0.05)
    assert len(places) == pytest.approx(most, abs=1)
    assert most == pytest.approx(FULL_TIME_SHARE * 0.05 / 0.0025, rel=0.05)  # 16; 17 could be in time
    while admission.inside >= REFILL_SHARE * most:
        assert not admission.may_begin(now, 0.05)
        places.pop().leave(now, inspected=False)
    assert len(begun(admission, now, 0.05)) > 0.6 * most


def test_a_client_with_no_time_to_spare_delays_nobody_else() -> None:
    guard = Guard(each_s=0.0025)
    guard.offer(400, 0.25, 3)
    admission, now = guard.admission, guard.now
    begun(admission, now, 0.05)
    assert not admission.may_begin(now, 0.001)
    assert admission.may_begin(now, 1.0)


def test_a_guard_that_has_measured_nothing_lets_calls_begin() -> None:
    admission = Admission()
    for _ in range(300):
        assert admission.may_begin(0.0, 0.05)
        admission.enter(0.0, 0.05)


def test_what_the_model_server_takes_does_not_count_in_the_time_for_the_inspection() -> None:
    admission = Admission()
    for number in range(40):
        admission.enter(100 + number / 10, 1.0).leave(100.01 + number / 10, inspected=True)
    for _ in range(100):
        admission.forwarded(60.0)
    admission.enter(110.0, math.inf, 1.0)
    admission.enter(110.0, math.inf, 1.0)
    assert admission.may_begin(110.0, math.inf, 1.0)
    with pytest.raises(Overloaded):
        admission.enter(110.0, 30.0, 1.0)  # the model server alone takes longer
    with pytest.raises(Overloaded):
        admission.enter(110.0, math.inf, 0.001)  # the guard does


def test_what_is_forgotten_is_measured_anew() -> None:
    """After an engine broke, or was mended, the rate of before says nothing: calls come in as at the start."""
    admission, now = Admission(), 0.0
    for _ in range(200):
        place = admission.enter(now, 1.0)
        now += 0.1
        place.leave(now, inspected=True)
    admission.enter(now, 10.0)
    assert not admission.is_in_time(0.1)
    admission.forget()
    assert admission.is_in_time(0.1)
