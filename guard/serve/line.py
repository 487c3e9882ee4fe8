"""Calls that wait to begin, findable by age and by deadline, and how many of them may be told something.

Rule 1: every call that joins goes out once: as the newest, or because its time is over.
Rule 2: no clock, no input and output; who asks tells the time.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

CLOCKS_DIFFER_S = 0.02  # by which a client's own timer may run out after ours
SPARE = 1024  # calls that have gone out may stay in the heap until they outnumber those that wait, and this

Call = TypeVar("Call")


@dataclass(order=True, slots=True)
class Member(Generic[Call]):
    """One call that has not begun."""

    deadline: float
    number: int
    call: Call | None = field(compare=False)


class Line(Generic[Call]):
    """Calls that wait, the newest to be taken first."""

    def __init__(self) -> None:
        self.by_age: dict[int, Member[Call]] = {}  # oldest first
        self.by_deadline: list[Member[Call]] = []  # a heap; those that have gone out may still be in it
        self.over: deque[Member[Call]] = deque()  # by deadline: theirs has passed, but perhaps not by their own clocks
        self.came = 0

    def __len__(self) -> int:
        return len(self.by_age)

    def join(self, call: Call, deadline: float) -> None:
        self.came += 1
        self.by_age[self.came] = waiting = Member(deadline, self.came, call)
        heapq.heappush(self.by_deadline, waiting)
        if len(self.by_deadline) > 2 * len(self.by_age) + SPARE:
            self.by_deadline = list(self.by_age.values())
            heapq.heapify(self.by_deadline)

    def newest(self) -> Call | None:
        """Whoever came last, still waiting."""
        return self.by_age[next(reversed(self.by_age))].call if self.by_age else None

    def take_newest(self) -> Call:
        """Whoever came last, no longer waiting. Raises KeyError where there is nobody."""
        return self.out(self.by_age.popitem()[1])

    def expire(self, now: float, most: int) -> list[Call]:
        """At most so many whose time is over, by any clock, no longer waiting."""
        while self.by_deadline and (self.by_deadline[0].call is None or self.by_deadline[0].deadline <= now):
            first = heapq.heappop(self.by_deadline)
            if first.call is not None:
                del self.by_age[first.number]
                self.over.append(first)
        found: list[Call] = []
        while self.over and self.over[0].deadline + CLOCKS_DIFFER_S <= now and len(found) < most:
            found.append(self.out(self.over.popleft()))
        return found

    def out(self, waiting: Member[Call]) -> Call:
        call, waiting.call = waiting.call, None
        if call is None:
            raise KeyError(waiting.number)
        return call


class Allowance:
    """So many a second, and no more than `most` at once."""

    def __init__(self, rate: float, most: float, now: float) -> None:
        self.rate, self.most, self.left, self.updated = rate, most, most, now

    def take(self, now: float) -> bool:
        """Whether one more is allowed."""
        self.left = min(self.most, self.left + self.rate * (now - self.updated))
        self.updated = now
        if self.left < 1:
            return False
        self.left -= 1
        return True
