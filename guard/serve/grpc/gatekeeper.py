"""The gatekeeper: which calls a gate admits, which wait before it, and which are refused because they wait in vain.

How it works. Where more calls come than can be handled, each that begins late makes others late as well. So a few begin
in one turn of the event loop, and the others wait; `line` says in which order. A call that waits in vain should be
refused at once, but a refusal costs a tenth of a small answer, and its client may well call again at once: with
unlimited refusals, a load of four times what can be answered leaves half of the answers. So `REFUSALS_PER_S` are
sent, and nothing more is spent on the other calls: their deadline passes, they are counted, and what the core holds of
them is freed.

Rule 1: every call that comes is begun, refused or expired, once; one whose time is over may still be let in.
Rule 2: what waits is bounded, and so is what one turn does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import grpc

from guard.serve.grpc.line import Allowance, Line

TURN_CALLS = 8  # calls that begin in one turn of the event loop
MAX_TURN_S = 0.005  # at most, until the calls that wait are looked after
MAX_TURN_REFUSALS = 16  # at a wall
NEVER = float("inf")
MAX_WAITING_CALLS = 4096
MAX_TURN_EXPIRED_CALLS = 64  # calls that are given up in one turn
REFUSALS_PER_S = 100.0  # of calls that wait in vain; each costs 0.2 ms
MAX_SAVED_REFUSALS = 300.0  # after a pause


class Ticket(Protocol):
    """The token that a gate gives a call that it admits; it is torn when the call is over."""

    def tear(self) -> None: ...


@dataclass(frozen=True)
class Refusal:
    """The status that ends a call that a gate does not admit."""

    code: grpc.StatusCode
    details: str
    trailing: tuple[tuple[str, str | bytes], ...]


class Moments(NamedTuple):
    """The moments of time.monotonic() by which a call has to be inspected and answered; infinite if there is none."""

    inspected: float
    answered: float
    lane: Any = None  # of the gate, where it has several; calls of one lane do not wait for those of another

    @property
    def first(self) -> float:
        return min(self.inspected, self.answered)


class Gate(Protocol):
    """The admission of one method's calls, asked before anything is spent on a call; it gets the ServicerContext."""

    def moments(self, context: Any) -> Moments:
        """The moments at which the call's time is over."""

    def client(self, context: Any) -> Hashable:
        """The client whose call it is; no client's calls keep another's waiting for long."""

    def enter(self, moments: Moments) -> Ticket | None:
        """Admit a call and return its ticket; None: not now."""

    def is_hopeless(self, moments: Moments, ahead: int) -> bool:
        """Whether a call is too late once the `ahead` calls before it have been handled."""

    def refuse(self, context: Any) -> Refusal:
        """Refuse a call for which there is no room."""

    def expire(self, context: Any, moments: Moments) -> Refusal | Ticket | None:
        """End a call whose time is over, or let it in; None where its client knows by itself that it is over."""


@dataclass(frozen=True)
class Wall:
    """A method that admits no call: `refuse` gives the end of each, by its ServicerContext."""

    refuse: Callable[[Any], Refusal]

    def handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        """Build the same as a handler, for a library that accepts calls by itself."""

        async def abort(requests: Any, context: Any) -> None:  # noqa: ARG001  messages are never read
            refusal = self.refuse(context)
            await context.abort(refusal.code, refusal.details, refusal.trailing)

        return grpc.stream_stream_rpc_method_handler(abort)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that has arrived and not begun."""

    call: Any
    context: Any
    moments: Moments


TurnAway = Callable[[Any, Refusal], None]


class Porter:
    """A queue of calls where there is no gate: a few begin in each turn of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, begin: Callable[[Any, Any, Any], None], slice_: int) -> None:
        self.loop, self.begin, self.slice = loop, begin, slice_
        self.line: Line[tuple[Any, Any, Any]] = Line()
        self.left = slice_  # of this turn

    def take(self, what: Any, call: Any, context: Any) -> None:
        """Begin a call that has come, or let it join the line; `begin` gets `what` as well."""
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
    """A queue of one method's calls at a gate: a few begin in each turn of the event loop, and the others wait."""

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
        self.lines: dict[Any, Line[Waiting]] = {}  # by lane
        self.refusals = Allowance(REFUSALS_PER_S, MAX_SAVED_REFUSALS, now())
        self.left = TURN_CALLS  # of this turn
        self.due: asyncio.Handle | None = None  # the next turn

    @property
    def waiting(self) -> int:
        """The number of calls in all lines."""
        return sum(map(len, self.lines.values()))

    def take(self, call: Any, context: Any) -> None:
        """Begin a call that has come, or let it join the line."""
        came = Waiting(call, context, self.gate.moments(context))
        if self.left == TURN_CALLS:
            self.turn_soon()
        if self.left > 0:
            self.left -= 1
            if self.begin(came):
                return
        line = self.lines.get(came.moments.lane)
        if line is None:
            line = self.lines[came.moments.lane] = Line()
        line.join(came, came.moments.first, self.gate.client(context))
        if self.waiting > MAX_WAITING_CALLS:
            last = max(self.lines.values(), key=len).take_last()
            self.turn_away(last.call, self.gate.refuse(last.context))

    def turn_soon(self) -> None:
        if self.due is not None:
            self.due.cancel()
        self.due = self.loop.call_soon(self.turn)

    def turn(self) -> None:
        """Work through a turn of the event loop: begin some calls, and expire or refuse those that will not begin."""
        self.left, self.due = TURN_CALLS, None
        now = self.now()
        for line in self.lines.values():
            line.tell_time(now)
            for late in line.expire(now, MAX_TURN_EXPIRED_CALLS):
                end = self.gate.expire(late.context, late.moments)
                if isinstance(end, Refusal):
                    self.turn_away(late.call, end)
                elif end is not None:
                    self.enter(late.call, end)
        moving = list(self.lines.values())
        while moving:
            moving = [line for line in moving if self.advance(line)]
        for line in self.lines.values():
            self.refuse(line, now)
        self.lines = {lane: line for lane, line in self.lines.items() if line or line.over}
        if self.left < TURN_CALLS:
            self.turn_soon()
        elif self.lines:
            self.due = self.loop.call_later(MAX_TURN_S, self.turn)

    def advance(self, line: Line[Waiting]) -> bool:
        """Begin the next call of a line, and return whether that was possible."""
        if self.left <= 0 or (first := line.next()) is None or not self.begin(first):
            return False
        self.left -= 1
        line.take_next()
        return True

    def begin(self, waiting: Waiting) -> bool:
        """Begin a call if its gate admits it, and return whether it did."""
        ticket = self.gate.enter(waiting.moments)
        if ticket is None:
            return False
        self.enter(waiting.call, ticket)
        return True

    def refuse(self, line: Line[Waiting], now: float) -> None:
        """Refuse calls that wait in vain, the last of the line first, as far as the allowance for refusals goes."""
        while self.refusals.any(now) and (last := line.last()) is not None:
            if not self.gate.is_hopeless(last.moments, len(line) - 1):
                return
            self.refusals.take()
            line.take_last()
            self.turn_away(last.call, self.gate.refuse(last.context))
