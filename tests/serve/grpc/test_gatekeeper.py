"""Who comes in at a gate and who waits, by a made-up loop: each call goes out once, the newest first."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from guard.serve.grpc import gatekeeper
from guard.serve.grpc.gatekeeper import (
    MAX_SAVED_REFUSALS,
    MAX_TURN_S,
    MAX_WAITING_CALLS,
    REFUSALS_PER_S,
    TURN_CALLS,
    GateKeeper,
    Moments,
    Porter,
    Refusal,
    Ticket,
)
from guard.serve.grpc.line import CLOCKS_DIFFER_S, MIN_STALE_ENTRIES, Line

CROWDED = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "crowded", ())
LATE = Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "late", ())


class Due:
    def __init__(self, at: float, work: Callable[[], None]) -> None:
        self.at, self.work, self.over = at, work, False

    def cancel(self) -> None:
        self.over = True


@dataclass
class Loop:
    """Turns when it is told to."""

    now: float = 0.0
    due: list[Due] = field(default_factory=list)

    def call_soon(self, work: Callable[[], None]) -> Due:
        return self.call_later(0.0, work)

    def call_later(self, delay: float, work: Callable[[], None]) -> Due:
        self.due.append(Due(self.now + delay, work))
        return self.due[-1]

    def turn(self, passed: float = 0.0) -> None:
        self.now += passed
        ready = [due for due in self.due if due.at <= self.now]
        self.due = [due for due in self.due if due.at > self.now]
        for due in ready:
            if not due.over:
                due.work()


@dataclass
class House:
    """A gate that lets in, and finds hopeless, whom it is told to; a call's context is its deadline."""

    open: bool = True
    hopeless: bool = False
    clients_know: bool = True
    lets_late_in: bool = False
    who: int = 0  # calls now
    loop: Loop = field(default_factory=Loop)
    begun: list[Any] = field(default_factory=list)
    refused: list[Any] = field(default_factory=list)
    told_late: list[Any] = field(default_factory=list)
    expired: int = 0

    def __post_init__(self) -> None:
        self.keeper = GateKeeper(self, self.loop, self.enters, self.turned_away, now=lambda: self.loop.now)  # type: ignore[arg-type]

    def moments(self, context: Any) -> Moments:
        return Moments(float(context), float("inf"))

    def client(self, context: Any) -> int:
        return self.who

    def enter(self, moments: Moments) -> Ticket | None:
        return self if self.open and moments.first > self.loop.now else None

    def tear(self) -> None:
        """A ticket that nobody tears."""

    def is_hopeless(self, moments: Moments, ahead: int) -> bool:
        return self.hopeless

    def refuse(self, context: Any) -> Refusal:
        return CROWDED

    def expire(self, context: Any, moments: Moments) -> Refusal | Ticket | None:
        self.expired += 1
        if self.lets_late_in:
            return self
        return None if self.clients_know else LATE

    def enters(self, call: Any, ticket: Ticket) -> None:
        assert ticket is self
        self.begun.append(call)

    def turned_away(self, call: Any, refusal: Refusal) -> None:
        (self.refused if refusal is CROWDED else self.told_late).append(call)

    def come(self, calls: range, deadline: float = 100.0) -> None:
        for call in calls:
            self.keeper.take(call, deadline)


def test_a_few_begin_in_one_turn_and_the_newest_of_those_that_wait_come_next() -> None:
    house = House()
    house.come(range(3 * TURN_CALLS))
    assert house.begun == list(range(TURN_CALLS))
    house.loop.turn()
    assert house.begun[TURN_CALLS:] == list(reversed(range(2 * TURN_CALLS, 3 * TURN_CALLS)))
    house.loop.turn()
    assert sorted(house.begun) == list(range(3 * TURN_CALLS))
    for _ in range(3):
        house.loop.turn(MAX_TURN_S)
    assert not house.loop.due  # nothing is left to look after


def test_who_waits_comes_in_when_there_is_room_again() -> None:
    house = House(open=False)
    house.come(range(2))
    house.loop.turn()
    assert house.begun == house.refused == []
    house.open = True
    house.loop.turn(MAX_TURN_S)
    assert house.begun == [1, 0]


def test_those_who_wait_in_vain_are_told_as_long_as_that_costs_little() -> None:
    house = House(open=False, hopeless=True)
    house.come(range(1000))
    house.loop.turn()
    assert house.refused == list(range(int(MAX_SAVED_REFUSALS)))  # who would come in last hears it first
    for _ in range(100):
        house.loop.turn(0.01)
    assert len(house.refused) == pytest.approx(MAX_SAVED_REFUSALS + REFUSALS_PER_S, abs=2)
    assert house.begun == []


def test_a_single_call_in_vain_is_told_in_the_next_turn() -> None:
    house = House(open=False, hopeless=True)
    house.come(range(1))
    house.loop.turn()
    assert house.refused == [0]


@pytest.mark.parametrize("clients_know", [True, False])
def test_whose_time_is_over_is_counted_and_told_only_if_his_client_cannot_know(*, clients_know: bool) -> None:
    house = House(open=False, clients_know=clients_know)
    house.come(range(10), deadline=1.0)
    house.loop.turn()
    house.open = True
    house.loop.turn(1.0)
    assert house.begun == []  # although there is room: it is too late
    assert house.expired == 0  # his own clock may be behind
    house.loop.turn(CLOCKS_DIFFER_S + MAX_TURN_S)
    house.loop.turn(MAX_TURN_S)
    assert house.expired == 10
    assert len(house.told_late) == (0 if clients_know else 10)


def test_whose_time_is_over_may_be_let_in_all_the_same() -> None:
    house = House(open=False, lets_late_in=True)
    house.come(range(10), deadline=1.0)
    house.loop.turn(1.0 + CLOCKS_DIFFER_S)
    house.loop.turn(MAX_TURN_S)
    assert sorted(house.begun) == list(range(10))
    assert house.told_late == house.refused == []


def test_what_waits_is_bounded() -> None:
    house = House(open=False)
    house.come(range(MAX_WAITING_CALLS + 10))
    assert house.refused == list(range(10))  # whoever comes into a full line is not worse off than those before
    assert house.keeper.waiting == MAX_WAITING_CALLS


def test_every_call_goes_out_once_whatever_happens() -> None:
    chance = random.Random(0)
    house, came = House(), 0
    for _ in range(3000):
        house.open, house.hopeless = chance.random() < 0.3, chance.random() < 0.1
        more = chance.randrange(12)
        house.who = chance.randrange(5)
        house.come(range(came, came + more), deadline=house.loop.now + chance.uniform(0.0, 0.1))
        came += more
        house.loop.turn(chance.uniform(0.0, 0.01))
    for _ in range(1000):
        house.loop.turn(MAX_TURN_S)
    assert len(house.begun) + len(house.refused) + house.expired == came
    assert len(set(house.begun) | set(house.refused)) == len(house.begun) + len(house.refused)
    assert min(len(house.begun), len(house.refused), house.expired) > 100
    assert not house.loop.due


def test_a_thousand_calls_of_one_client_do_not_keep_anothers_one_waiting() -> None:
    house = House(open=False)
    house.come(range(500))
    house.who = 1
    house.come(range(500, 501))
    house.who = 0
    house.come(range(501, 1000))
    house.open = True
    house.loop.turn()
    assert house.begun[:4] == [999, 500, 998, 997]


def test_who_waits_in_vain_among_many_is_not_the_one_who_has_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gatekeeper, "MAX_WAITING_CALLS", 100)
    house = House(open=False)
    house.who = 1
    house.come(range(3))
    house.who = 0
    house.come(range(3, 203))
    assert house.refused == list(range(3, 106))


def test_a_line_does_not_remember_those_that_have_gone_out() -> None:
    line: Line[int] = Line()
    for number in range(20 * MIN_STALE_ENTRIES):
        line.join(number, 1000.0, number % 7)
        line.join(-number, 1000.0, number % 7)
        assert line.take_next() == -number
        assert line.take_last() == number
    assert len(line) == len(line.clients) == 0
    assert len(line.by_deadline) <= MIN_STALE_ENTRIES + 4
    assert len(line.turns) <= MIN_STALE_ENTRIES + 4


def test_each_client_has_as_many_turns_and_the_newest_comes_first_among_equals() -> None:
    line: Line[int] = Line()
    for number in range(12):
        line.join(number, 100.0, number % 4)
    assert [line.take_next() for _ in range(4)] == [11, 10, 9, 8]
    for number in range(100, 108):
        line.join(number, 100.0, 3)
    turns = [line.take_next() for _ in range(8)]
    assert [number if number < 100 else "3" for number in turns] == ["3", 6, 5, 4, "3", 2, 1, 0]
    line.new_round()
    assert line.next() == 105


def test_a_thousand_clients_with_a_call_each_are_served_the_newest_first() -> None:
    line: Line[int] = Line()
    for number in range(1000):
        line.join(number, 100.0, number)
    assert [line.take_next() for _ in range(1000)] == list(reversed(range(1000)))


def test_where_there_is_no_gate_each_client_has_its_turn_as_well() -> None:
    loop, begun = Loop(), []
    porter = Porter(loop, lambda what, call, context: begun.append((what, call)), 2)  # type: ignore[arg-type]
    crowd, alone = Peer("crowd"), Peer("alone")
    for call in range(50):
        porter.take("live", call, crowd)
    porter.take("live", 50, alone)
    for call in range(51, 100):
        porter.take("live", call, crowd)
    assert begun == [("live", 0), ("live", 1)]
    loop.turn()
    assert ("live", 50) in begun
    for _ in range(60):
        loop.turn()
    assert sorted(call for _, call in begun) == list(range(100))
    assert not loop.due


@dataclass(frozen=True)
class Peer:
    """As much of a ServicerContext."""

    name: str

    def peer(self) -> str:
        return self.name
