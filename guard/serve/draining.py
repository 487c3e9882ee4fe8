"""The drain of a guard: it is told to leave, sends its clients elsewhere, and loses no call on the way.

How it works. From `begin` on the guard is not ready, and every client that is connected is told to connect again
(GOAWAY): a client that balances or looks names up anew finds another replica, and one that comes back is served as
before. After `drain_s` no connection is accepted any more, and clients that came meanwhile are told in their turn;
calls that are under way go on. `finish` waits for these, and closes. A drain begins once: `guard drain` begins it
before the process is told to stop, and SIGTERM then waits for what is left of `drain_s`.

Rule 1: no call ends as CANCELLED, and none is refused before its client could know that it has to go elsewhere.
Rule 2: nothing here waits longer than `drain_s`, then `grace_s`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from guard.serve.grpc.door import Door
from guard.serve.log import Log
from guard.serve.readiness import Readiness

SHUTTING_DOWN = "the guard is shutting down"
TELL_POLL_S = 0.01  # between two looks for clients that are still to be told
SCAN_SHARE = 0.1  # of the event loop's time, at most, for these looks
AGE_FACTOR = 1.1  # by which gRPC's core may stretch a connection's age
LEAVE_S = 0.5  # for clients that were told to stop calling, before their calls are refused


class Entrance(Protocol):
    """A listener whose clients can be told to leave, whatever protocol they speak."""

    address: str

    @property
    def tells(self) -> bool:
        """Whether clients can be told at all."""

    @property
    def told(self) -> Collection[Any]:
        """The clients that were told."""

    def tell_clients(self, busy_ports: Container[int] = ()) -> int:
        """Tell the clients to connect again, and return how many are still to be told."""

    def connections(self) -> int:
        """The number of open connections."""

    def close_entrance(self) -> None:
        """Accept no further connections; those that are open stay."""

    async def stop(self) -> None:
        """Close the listener and its connections."""


@dataclass(frozen=True)
class Progress:
    """The state of a drain."""

    remaining_s: float  # until no connection is accepted any more
    is_closed: bool  # no connection is accepted any more
    told: int  # clients that were told to connect elsewhere
    connections: int  # that are open
    calls: int  # that are under way


class Drain:
    """The drain of listeners and of the doors behind them, from `begin` to `finish`."""

    def __init__(
        self,
        listeners: Sequence[Entrance],
        doors: Sequence[Door],
        readiness: Readiness,
        log: Log,
        *,
        drain_s: float,
        grace_s: float,
        max_age_s: float | None = None,
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        """Take what is to be drained; `closing` is called once no calls are waited for but those under way.

        Connections that are `max_age_s` old are told to end by gRPC's core, which is all that can be done within TLS.
        """
        self.listeners = listeners
        self.doors = doors
        self.readiness = readiness
        self.log = log
        self.drain_s = drain_s
        self.grace_s = grace_s
        self.leave_s = LEAVE_S
        if max_age_s is not None and max_age_s < drain_s and not all(listener.tells for listener in listeners):
            self.leave_s += max_age_s * AGE_FACTOR  # then gRPC's core has told them, as it does at that age
        self.closing = closing
        self.leaving: asyncio.Task[None] | None = None
        self.is_closed = False
        self.ends = 0.0  # of time.monotonic(): when no connection is accepted any more

    def begin(self) -> None:
        """Begin to drain, unless that was done before."""
        if self.leaving is None:
            self.ends = time.monotonic() + self.drain_s
            self.readiness.say("drain", SHUTTING_DOWN)
            self.log.info("draining", drain_s=self.drain_s, connections=self.connections())
            self.leaving = asyncio.create_task(self.leave(), name="drain")

    def connections(self) -> int:
        """The number of open connections."""
        return sum(listener.connections() for listener in self.listeners)

    def progress(self) -> Progress:
        return Progress(
            remaining_s=max(0.0, self.ends - time.monotonic()),
            is_closed=self.is_closed,
            told=sum(len(listener.told) for listener in self.listeners),
            connections=self.connections(),
            calls=sum(door.calls for door in self.doors),
        )

    async def leave(self) -> None:
        """Tell the clients, serve until `drain_s` is over, accept no more, and tell those that came meanwhile."""
        await self.tell(until=self.ends)
        await asyncio.sleep(self.ends - time.monotonic())
        for listener in self.listeners:
            listener.close_entrance()
        self.is_closed = True
        found = self.progress()
        self.log.info("drained", told=found.told, connections=found.connections, calls=found.calls)
        await self.tell(until=time.monotonic() + LEAVE_S)

    async def tell(self, until: float) -> None:
        """Tell all clients that are connected to connect again; a connection that is busy is looked at again."""
        while True:
            began = time.monotonic()
            busy_ports = frozenset().union(*(door.replies.ports() for door in self.doors))
            untold = sum(listener.tell_clients(busy_ports) for listener in self.listeners)
            now = time.monotonic()
            if untold == 0 or now >= until:
                return
            await asyncio.sleep(min(until - now, max(TELL_POLL_S, (now - began) / SCAN_SHARE)))

    async def finish(self) -> None:
        """Drain to the end: what is under way has `grace_s`, and then all is closed."""
        self.begin()
        if self.leaving is not None:
            await asyncio.shield(self.leaving)
        end = time.monotonic() + self.grace_s
        await self.until_left(min(self.leave_s, self.grace_s))
        self.closing()
        await asyncio.gather(*(door.empty(max(0.0, end - time.monotonic())) for door in self.doors))
        await asyncio.gather(*(listener.stop() for listener in self.listeners))

    async def until_left(self, within_s: float) -> None:
        """Wait until no client is connected: one that was told leaves after its last answer."""
        end = time.monotonic() + within_s
        while self.connections() and time.monotonic() < end:
            await asyncio.sleep(TELL_POLL_S)

    async def stop(self) -> None:
        """Give the drain up, wherever it is."""
        if self.leaving is not None:
            self.leaving.cancel()
            with suppress(asyncio.CancelledError):
                await self.leaving
