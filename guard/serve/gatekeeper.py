"""Who comes in at a gate, who waits before it, and who is told that it is in vain.

How it works. Where more calls come than can be handled, each that begins late makes others late as well. So a few begin
in one turn of the event loop, and the others wait; `line` says in which order. Whoever waits in vain should hear so at
once, but a refusal costs a tenth of a small answer, and who hears it at once may well come again at once: told without
measure, four times what can be answered leaves half of it. So `REFUSALS_A_SECOND` are told, and for the others nothing
more is spent: their deadline passes, they are counted, and what the core holds of them is freed.

Rule 1: every call that comes is begun, refused or expired, once.
Rule 2: what waits is bounded, and so is what one turn does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from guard.serve.line import Allowance, Line

SLICE = 4  # calls that begin in one turn of the event loop
TURN_S = 0.005  # at most, until somebody looks after those that wait
REFUSALS_IN_A_TURN = 16  # at a wall
NEVER = float("inf")
MOST_WAITING = 4096
MOST_EXPIRED = 64  # calls that are let go of in one turn
REFUSALS_A_SECOND = 100.0  # of calls that wait in vain; each costs 0.2 ms
REFUSALS_AT_ONCE = 300.0  # after a pause


class Ticket(Protocol):
    """What a gate gives to a call that it lets in; it is torn when the call is over."""

    def tear(self) -> None: ...


@dataclass(frozen=True)
class Refusal:
    """How a call ends that a gate does not let in."""

    code: grpc.StatusCode
    details: str
    trailing: tuple[tuple[str, str | bytes], ...]


class Gate(Protocol):
    """Is asked about each call of its method before anything is spent on it; it knows a call by its ServicerContext."""

    def deadline(self, context: Any) -> float:
        """Of time.monotonic(): when the call's time is over."""

    def client(self, context: Any) -> Hashable:
        """Whose call it is; nobody's calls keep another's waiting for long."""

    def enter(self, deadline: float) -> Ticket | None:
        """Let a call in; None: not now."""

    def is_hopeless(self, deadline: float, ahead: int) -> bool:
        """Whether a call comes too late once those `ahead` have been handled."""

    def refuse(self, context: Any) -> Refusal:
        """There is no room for the call."""

    def expire(self, context: Any) -> Refusal | None:
        """The call's time is over; None where its client knows that by itself."""


@dataclass(frozen=True)
class Wall:
    """Stands where no call comes in: `refuse` is asked, by its ServicerContext, how each ends."""

    refuse: Callable[[Any], Refusal]

    def handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        """The same as a handler, for a library that accepts calls by itself."""

        async def abort(requests: Any, context: Any) -> None:  # noqa: ARG001  messages are never read
            refusal = self.refuse(context)
            await context.abort(refusal.code, refusal.details, refusal.trailing)

        return grpc.stream_stream_rpc_method_handler(abort)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that has come and not begun."""

    call: Any
    context: Any
    deadline: float


TurnAway = Callable[[Any, Refusal], None]


class Porter:
    """Lets calls begin where there is no gate, a few in each turn of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, begin: Callable[[Any, Any, Any], None], slice_: int) -> None:
        self.loop, self.begin, self.slice = loop, begin, slice_
        self.line: Line[tuple[Any, Any, Any]] = Line()
        self.left = slice_  # of this turn

    def take(self, what: Any, call: Any, context: Any) -> None:
        """A call has come: it begins, or joins the line; `begin` is told what it is."""
        if self.left == self.slice:
            self.loop.call_soon(self.turn)
        if self.left > 0:
            self.left -= 1
            self.begin(what, call, context)
        else:
            self.line.join((what, call, context), NEVER, context.peer())

    def turn(self) -> None:
        self.left = self.slice
        self.line.tell_time(time.monotonic())
        if self.line:
            self.loop.call_soon(self.turn)
        while self.line and self.left > 0:
            self.left -= 1
            self.begin(*self.line.take_next())


class GateKeeper:
    """Lets calls of one method in, a few in each turn of the event loop, and keeps the line of those that wait."""

    def __init__(
        self,
        gate: Gate,
        loop: asyncio.AbstractEventLoop,
        enter: Callable[[Any, Ticket], None],
        turn_away: TurnAway,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.gate, self.loop, self.enter, self.turn_away, self.now = gate, loop, enter, turn_away, now
        self.line: Line[Waiting] = Line()
        self.refusals = Allowance(REFUSALS_A_SECOND, REFUSALS_AT_ONCE, now())
        self.left = SLICE  # of this turn
        self.due: asyncio.Handle | None = None  # the next turn

    def take(self, call: Any, context: Any) -> None:
        """A call has come: it begins, or joins the line."""
        came = Waiting(call, context, self.gate.deadline(context))
        if self.left == SLICE:
            self.turn_soon()
        if self.left > 0:
            self.left -= 1
            if self.begin(came):
                return
        self.line.join(came, came.deadline, self.gate.client(context))
        if len(self.line) > MOST_WAITING:
            last = self.line.take_last()
            self.turn_away(last.call, self.gate.refuse(last.context))

    def turn_soon(self) -> None:
        if self.due is not None:
            self.due.cancel()
        self.due = self.loop.call_soon(self.turn)

    def turn(self) -> None:
        """Another turn of the event loop: let some in, and see to those that will not get in."""
        self.left, self.due = SLICE, None
        now = self.now()
        self.line.tell_time(now)
        for late in self.line.expire(now, MOST_EXPIRED):
            if (refusal := self.gate.expire(late.context)) is not None:
                self.turn_away(late.call, refusal)
        while self.left > 0 and (first := self.line.next()) is not None and self.begin(first):
            self.left -= 1
            self.line.take_next()
        self.refuse(now)
        if self.left < SLICE:
            self.turn_soon()
        elif self.line or self.line.over:
            self.due = self.loop.call_later(TURN_S, self.turn)

    def begin(self, waiting: Waiting) -> bool:
        """Whether the gate lets the call in; then it is under way."""
        ticket = self.gate.enter(waiting.deadline)
        if ticket is None:
            return False
        self.enter(waiting.call, ticket)
        return True

    def refuse(self, now: float) -> None:
        """Tell those who wait in vain, who would come in last first, as long as that costs little."""
        while self.refusals.any(now) and (last := self.line.last()) is not None:
            if not self.gate.is_hopeless(last.deadline, len(self.line) - 1):
                return
            self.refusals.take()
            self.line.take_last()
            self.turn_away(last.call, self.gate.refuse(last.context))
