"""The line of calls that wait to begin: which comes next, which has expired, and how many may be refused.

How it works. Of the clients that wait, those come first that had the fewest turns in this round (a quarter of a
second); among them the newest call of all, since it has the most time left. So one client's thousand calls do not keep
the only call of another waiting, each client gets as much as the other, and of a thousand clients with one call each
the newest is first.
Three orders are kept: each client's calls by age, a heap of clients by turns, and a heap of calls by deadline. Entries
of the heaps that no longer hold are passed over when they come up.

Rule 1: every call that joins leaves once: by its turn, as the one to be given up, or because its time is over.
Rule 2: no clock, no input or output; the caller passes the time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

ROUND_S = 0.25  # in which each client should have as many turns as another
CLOCKS_DIFFER_S = 0.02  # by which a client's own timer may run out after ours
MIN_STALE_ENTRIES = 1024  # entries that no longer hold may stay in a heap until they outnumber those that do, and this

Call = TypeVar("Call")


@dataclass(slots=True, eq=False)
class Member(Generic[Call]):
    """A call in the line, which has not begun."""

    number: int
    call: Call | None  # None once it has left
    client: Hashable


class Line(Generic[Call]):
    """The line of calls that wait, each client's in the order in which they came."""

    def __init__(self) -> None:
        self.clients: dict[Hashable, dict[int, Member[Call]]] = {}
        self.had: dict[Hashable, int] = {}  # turns of each client in this round
        self.turns: list[tuple[int, int, Member[Call]]] = []  # a client's turns, minus its newest's number, its newest
        self.by_deadline: list[tuple[float, int, Member[Call]]] = []  # with its number
        self.over: deque[tuple[float, Call]] = deque()  # by deadline: it has passed, but perhaps not by clients' clocks
        self.waiting = self.came = 0
        self.round_over = 0.0

    def __len__(self) -> int:
        return self.waiting

    def join(self, call: Call, deadline: float, client: Hashable) -> None:
        self.came = number = self.came + 1
        self.waiting += 1
        member = Member(number, call, client)
        members = self.clients.get(client)
        if members is None:
            members = self.clients[client] = {}
        members[number] = member
        heapq.heappush(self.by_deadline, (deadline, number, member))
        heapq.heappush(self.turns, (self.had.get(client, 0), -number, member))
        if len(self.by_deadline) > 2 * self.waiting + MIN_STALE_ENTRIES:
            self.by_deadline = [entry for entry in self.by_deadline if entry[2].call is not None]
            heapq.heapify(self.by_deadline)
        if len(self.turns) > 2 * len(self.clients) + MIN_STALE_ENTRIES:
            self.rank()

    def next(self) -> Call | None:
        """The call whose turn it is, which stays in the line; None where the line is empty."""
        while self.turns:
            had, _, newest = self.turns[0]
            members = self.clients.get(newest.client)
            if members and had == self.had.get(newest.client, 0) and next(reversed(members)) == newest.number:
                return newest.call
            heapq.heappop(self.turns)
        return None

    def take_next(self) -> Call:
        """Take the call whose turn it is out of the line. Raises KeyError where the line is empty."""
        if self.next() is None:
            raise KeyError("nobody waits")
        first = self.turns[0][2]
        self.had[first.client] = self.had.get(first.client, 0) + 1
        return self.out(first)

    def new_round(self, now: float = 0.0) -> None:
        """Begin a round in which no client has had a turn."""
        self.round_over = now + ROUND_S
        self.had.clear()
        self.rank()

    def tell_time(self, now: float) -> None:
        """Begin another round once this one is over."""
        if now >= self.round_over:
            self.new_round(now)

    def last(self) -> Call | None:
        """The call that would begin last, which stays in the line: the oldest of the client that has most."""
        return self.oldest().call if self.waiting else None

    def take_last(self) -> Call:
        """Take the last call out of the line. Raises ValueError where the line is empty."""
        return self.out(self.oldest())

    def oldest(self) -> Member[Call]:
        members = max(self.clients.values(), key=len)
        return next(iter(members.values()))

    def expire(self, now: float, most: int) -> list[Call]:
        """Take out calls whose time is over by any clock, and return at most `most` of them."""
        entries = self.by_deadline
        while entries and (entries[0][0] <= now or entries[0][2].call is None):
            deadline, _, member = heapq.heappop(entries)
            if member.call is not None:
                self.over.append((deadline, self.out(member)))
        found: list[Call] = []
        while self.over and self.over[0][0] + CLOCKS_DIFFER_S <= now and len(found) < most:
            found.append(self.over.popleft()[1])
        return found

    def out(self, member: Member[Call]) -> Call:
        """Take a call out, and rank its client by the newest of those that are left."""
        call, member.call = member.call, None
        if call is None:
            raise KeyError(f"call {member.number} has gone out already")
        self.waiting -= 1
        client = member.client
        members = self.clients[client]
        del members[member.number]
        if not members:
            del self.clients[client]
        elif (newest := next(reversed(members.values()))).number < member.number:  # else it is ranked already
            heapq.heappush(self.turns, (self.had.get(client, 0), -newest.number, newest))
        return call

    def rank(self) -> None:
        newests = (next(reversed(members.values())) for members in self.clients.values())
        self.turns = [(self.had.get(newest.client, 0), -newest.number, newest) for newest in newests]
        heapq.heapify(self.turns)


class Allowance:
    """An allowance of `rate` a second, and no more than `most` at once."""

    def __init__(self, rate: float, most: float, now: float) -> None:
        self.rate, self.most, self.left, self.updated = rate, most, most, now

    def any(self, now: float) -> bool:
        """Whether one more is allowed."""
        self.left = min(self.most, self.left + self.rate * (now - self.updated))
        self.updated = now
        return self.left >= 1

    def take(self) -> None:
        """Use up one that `any` has allowed."""
        self.left -= 1
