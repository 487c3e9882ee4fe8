"""The outermost place of every handler: what is raised inside becomes the call's gRPC status, and its end is noted.

Rule 1: this is the one place where an exception becomes a status.
Rule 2: every call ends in exactly one way, and whoever keeps books hears of it once, before the client is told.
Rule 3: nothing outlives a call: an error's traceback holds its frames, and they the message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from guard.errors import GuardError
from guard.serve.call import Call
from guard.serve.gatekeeper import Refusal
from guard.serve.log import Log
from guard.serve.upstream import end_to_end

Answer = TypeVar("Answer")
Note = Callable[[Call], None]


def nothing(call: Call) -> None:
    """Say nothing of a call."""


def outermost(
    work: Callable[[Call], Awaitable[Answer]], *, timeout_s: float, log: Log, ended: Note = nothing
) -> Callable[[Any, Any], Awaitable[Answer | None]]:
    """A handler as grpc.aio calls it, around `work`; `ended` hears of each call once it is known how it ends.

    `timeout_s` is the deadline of a call whose client set none. The handler gives None where the call was aborted: the
    library has the status already, and raises by itself.
    """

    async def handler(requests: Any, context: Any) -> Answer | None:  # noqa: ARG001  the context reads
        call = Call.of(context, timeout_s=timeout_s)
        try:
            answer = await work(call)
        except (asyncio.CancelledError, grpc.aio.InternalError) as error:
            # The client left, or the core ended the call at its deadline, perhaps while something was written to it.
            call.end = "cancelled" if time.monotonic() < call.deadline else "expired"
            close(call, ended)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise asyncio.CancelledError from error
        except Exception as error:  # noqa: BLE001  grpc would tell the client the text of it
            call.ended(error)
            refusal = refusal_of(error, call, log)
        else:
            close(call, ended)
            return answer
        close(call, ended)
        await abort(context, refusal)
        return None

    return handler


def close(call: Call, ended: Note) -> None:
    """Enter the call in the books, and let go of what they needed."""
    try:
        ended(call)
    finally:
        call.forget()


def refusal_of(error: Exception, call: Call, log: Log) -> Refusal:
    """What the client is told of an error: ours with its reason, the model server's as it came, nothing of a fault."""
    if isinstance(error, GuardError):
        return call.refusal(error)
    if isinstance(error, grpc.aio.AioRpcError):
        trailing = (*end_to_end(error.trailing_metadata()), *call.marks)
        return Refusal(error.code(), error.details() or "", trailing)
    log.error("internal", id=call.id, cause=repr(error))
    return Refusal(grpc.StatusCode.INTERNAL, f"the guard failed; guard-id {call.id}", call.marks)


async def abort(context: Any, refusal: Refusal) -> None:
    """End the call with this status; the library, which keeps its own error with the call, raises that by itself.

    With its traceback and what it came from the error would also keep the frames, and they the call and its message: a
    circle that only the garbage collector finds, 120 MiB a refusal.
    """
    try:
        await context.abort(refusal.code, refusal.details, refusal.trailing)
    except grpc.aio.AbortError as aborted:
        aborted.__context__ = aborted.__traceback__ = None
