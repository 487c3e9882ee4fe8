"""The gate of ModelInfer: before anything is spent on a call it gets a place, or the refusal that ends it.

Rule 1: no call waits longer than the time for its inspection; then it fails as an inspection does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from guard.errors import Expired, GuardError, Overloaded
from guard.serve.admission import CROWDED, Place
from guard.serve.client_queues import ClientQueues
from guard.serve.grpc.call import Call, time_left_s
from guard.serve.grpc.gatekeeper import NEVER, Moments, Refusal, Ticket


@dataclass(frozen=True)
class Admitted:
    """The ticket of a call that is admitted."""

    place: Place
    inspect_by: float  # of time.monotonic()
    budget_s: float  # that ends then

    def tear(self) -> None:
        self.place.tear()


@dataclass(frozen=True)
class TooLate:
    """The ticket of a call that comes in although there is no time left to inspect it."""

    def tear(self) -> None:
        """Give nothing back, since nothing was taken."""


@dataclass(frozen=True)
class Uncounted:
    """The ticket of a call that is not inspected."""

    def tear(self) -> None:
        """Give nothing back, since nothing was taken."""


@dataclass
class InferGate:
    """The gate that `Acceptor` asks for ModelInfer; `ended` records each call that is not admitted.

    It is asked before a message is read, so that it does not know the model: what holds for any model, holds here.
    """

    queues: ClientQueues
    budget_s: float  # for the inspection
    ended: Callable[[Call], None]
    passes_late: bool = False  # whether what cannot be inspected in time is let in all the same
    is_open: bool = False  # whether nothing is inspected at all

    def moments(self, context: Any) -> Moments:
        now = time.monotonic()
        return Moments(now + self.budget_s, now + time_left_s(context), self.queues.of(self.client(context)))

    def client(self, context: Any) -> Hashable:
        return client_of(context)

    def enter(self, moments: Moments) -> Ticket | None:
        if self.is_open:
            return Uncounted()
        now = time.monotonic()
        place = self.queues.begin(moments.lane, now, moments.answered - now, moments.inspected - now)
        return None if place is None else Admitted(place, moments.inspected, self.budget_s)

    def is_hopeless(self, moments: Moments, ahead: int) -> bool:
        now = time.monotonic()
        inspect_s = NEVER if self.passes_late else moments.inspected - now
        return not self.queues.is_in_time(moments.lane, moments.answered - now, ahead, inspect_s)

    def refuse(self, context: Any) -> Refusal:
        call = Call.of(context)
        return call.refusal(self.ends(call, Overloaded(CROWDED)))

    def expire(self, context: Any, moments: Moments) -> Refusal | Ticket | None:
        if moments.answered <= moments.inspected:
            self.ends(
                Call.of(context), Expired("the deadline passed before the guard came to it; nothing was forwarded")
            )
            return None
        return TooLate() if self.passes_late else self.refuse(context)

    def ends(self, call: Call, error: GuardError) -> GuardError:
        call.ended(error)
        self.ended(call)
        return error


def client_of(context: Any) -> Hashable:
    """The client whose call it is: a connection."""
    return str(context.peer())
