"""A client's call as inference sees it, whatever protocol it came by: its time, and what becomes of it."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Hashable, Mapping
from typing import Any, Literal, Protocol, get_args

from guard.serve.admission import Place
from guard.serve.request_span import CallEnd, RequestSpan, Traced

UNCHECKED = "unchecked"  # the verdict on what passed uninspected
VERDICT, ID = "guard-verdict", "guard-id"

IDS = random.Random(secrets.randbits(128))  # names in a log, no secrets; the system's own would cost 5 us each

End = Literal["answered", "refused", "failed", "expired", "cancelled"]
ENDS: tuple[End, ...] = get_args(End)


class InferenceCall(Protocol):
    """A call from its arrival to its answer; verdict, items and end are filled in as they become known."""

    principal: str  # who calls, where a source tells that
    deadline: float  # the client's, of time.monotonic(); infinite where there is none
    inspect_by: float  # the moment, of time.monotonic(), at which the time for the inspection is over
    budget_s: float  # that is over then
    id: str
    message_id: str  # that the client's message bears
    told: str | None  # the verdict, as far as the client may know it
    items: int
    began: float
    place: Place | None  # among those that are being inspected
    patience: asyncio.TimerHandle | None  # until the place is given to others, as long as no message has come
    guarded: Any  # the model that the request is for, once that is known
    outcome: Any
    audited: Any  # its items, where the audit may need them once it is over
    queried: Any  # what the memory of queries tells of it, where there is one
    span: RequestSpan | None  # in the operator's traces
    end: End
    error: Exception | None  # what ended it, where it was not answered

    @property
    def client(self) -> Hashable:
        """The client whose call it is: a connection."""

    @property
    def names(self) -> Mapping[str, Any]:
        """The names of the call for a log line: the guard's id, the request's, and those of its trace."""

    @property
    def name(self) -> str:
        """The name that a client is told, by which an operator finds the call's log lines."""

    @property
    def failure_code(self) -> str:
        """The status with which the model server failed, where it did."""

    @property
    def traced(self) -> Traced:
        """The call as its span shows it."""

    @property
    def ending(self) -> CallEnd:
        """The end of a call that is over, as its span shows it."""

    def remaining_s(self) -> float:
        """The seconds left until the deadline, infinite where there is none. Raises Expired when there are none."""


def new_id() -> str:
    """A call's own id, by which its log lines are found."""
    return f"{IDS.getrandbits(64):016x}"
