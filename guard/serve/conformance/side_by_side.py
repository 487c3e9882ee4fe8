"""A trial of a guard: the same calls to the model server itself and through the guard, and what became of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from guard.serve.conformance.procedures import Procedure
from guard.serve.conformance.reply import Caller, Reply
from guard.serve.conformance.wiretap import NAME, Script, Seen, Wiretap
from guard.serve.grpc.metadata import Metadata

LAST_S = 2.0  # in which the wiretap has to see the end of a call
OUT_OF_REACH = {
    "NOT_ALLOWED": "closed by the guard; allow_methods opens it",
    "REJECTED": "the guard took the request for an attack; give --request FILE, one of a clean input",
    "UNKNOWN_MODEL": "the guard has no bundle for this model",
}
# With which a guard may answer a faulty request by itself
OWN_OF_FAULTS = frozenset({"UNKNOWN_MODEL", "MALFORMED_REQUEST", "UNINSPECTABLE", "TOO_LARGE", "NOT_ALLOWED"})


class Differs(Exception):
    """A difference between a direct call and one through the guard."""


class Inapplicable(Exception):
    """A reason why a check cannot be made here."""


@dataclass
class SideBySide:
    """A model server, the guard in front of it and, where this program started the guard, the wiretap between."""

    direct: Caller
    through: Caller
    wiretap: Wiretap | None
    timeout_s: float
    numbers: Iterator[int] = field(default_factory=itertools.count)
    made: dict[tuple[Any, ...], tuple[Reply, Reply, Reply]] = field(default_factory=dict)  # each pair is made once

    async def pair(self, procedure: Procedure, request: bytes, **options: Any) -> tuple[Reply, Reply, Reply]:
        """Make a call twice to the server itself, which shows what changes from call to call, and once through."""
        if procedure.withheld is not None:
            raise Inapplicable(procedure.withheld)
        name = (procedure.method, request, *options.values())
        if name not in self.made:
            given = {"timeout_s": self.timeout_s, **options}
            callers = (self.direct, self.direct, self.through)
            first, second, through = [await one.call(procedure.method, request, **given) for one in callers]
            self.made[name] = first, second, through
        return self.made[name]

    async def more(self, procedure: Procedure, calls: int, **options: Any) -> list[Reply]:
        """Make the right call to the server itself some more times."""
        given = {"timeout_s": self.timeout_s, **options}
        return [await self.direct.call(procedure.method, procedure.request, **given) for _ in range(calls)]

    async def scripted(
        self, procedure: Procedure, script: Script, *, request: bytes | None = None, **options: Any
    ) -> tuple[Reply, Seen]:
        """Make a call through the guard that the wiretap answers by a script. Raises Inapplicable, Differs."""
        name, wiretap = self.lay_ready(procedure, script)
        metadata: Metadata = (*options.pop("metadata", ()), (NAME, name))
        body = procedure.request if request is None else request
        given = {"timeout_s": self.timeout_s, **options}
        reply = await self.through.call(procedure.method, body, metadata=metadata, **given)
        if name not in wiretap.seen:
            raise self.unseen(reply)
        return reply, wiretap.seen[name]

    def lay_ready(self, procedure: Procedure, script: Script) -> tuple[str, Wiretap]:
        """Lay a script ready for one call; its name for the call's header NAME, and the wiretap."""
        if procedure.answered_by_guard:
            raise Inapplicable("the guard answers it itself")
        if self.wiretap is None:
            raise Inapplicable("it takes a guard that this command starts (without --guard)")
        name = f"call-{next(self.numbers)}"
        self.wiretap.scripts[name] = script
        return name, self.wiretap

    def unseen(self, reply: Reply) -> Exception:
        """The error for a call that did not come to the model server."""
        refuse_own(reply)
        return Differs(f"the call never came to the model server under its name; the client got {told(reply)}")


def refuse_own(reply: Reply) -> None:
    """Raise for an answer of the guard's own: Inapplicable where that is as it should be, else Differs."""
    if reply.refusal is None:
        return
    if reply.refusal in OUT_OF_REACH:
        raise Inapplicable(OUT_OF_REACH[reply.refusal])
    raise Differs(f"the guard answered by itself: {told(reply)}")


def told(reply: Reply) -> str:
    return f"{reply.code.name} {reply.details[:200]!r}" if not reply.ok else f"OK and {len(reply.messages)} messages"
