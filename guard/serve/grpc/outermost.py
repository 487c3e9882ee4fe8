"""The outermost layer of every handler: what is raised inside becomes the call's gRPC status, and its end is recorded.

Rule 1: this is the one place where an exception becomes a status.
Rule 2: every call ends in exactly one way, and `ended` is called with it once, before the client is told.
Rule 3: nothing outlives a call: an error's traceback holds its frames, and these the message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from guard.errors import GuardError
from guard.serve.grpc.call import Call
from guard.serve.grpc.gatekeeper import Refusal
from guard.serve.grpc.goaway import Replies
from guard.serve.grpc.metadata import downwards
from guard.serve.log import Log

Answer = TypeVar("Answer")
Note = Callable[[Call], None]
CLIENTS_CLOCK_S = 0.02  # by which a client's own timer may run out before ours: what then comes is a cancellation


def nothing(call: Call) -> None:
    """Take no note of a call."""


def outermost(
    work: Callable[[Call], Awaitable[Answer]], *, log: Log, ended: Note = nothing, replies: Replies | None = None
) -> Callable[[Any, Any], Awaitable[Answer | None]]:
    """Build the handler that grpc.aio calls around `work`; `ended` gets each call once it is known how it ends.

    From then on `replies` knows of its answer, until that has left.

    The handler gives None where the call was aborted: the library has the status already, and raises by itself.
    """

    async def handler(requests: Any, context: Any) -> Answer | None:  # noqa: ARG001  the context reads
        call = Call.of(context)
        try:
            answer = await work(call)
        except (asyncio.CancelledError, grpc.aio.InternalError) as error:
            # The client left, or the core ended the call at its deadline, perhaps while something was written to it.
            in_time = time.monotonic() < call.deadline - CLIENTS_CLOCK_S
            call.end = "cancelled" if in_time else "expired"
            close(call, ended)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise asyncio.CancelledError from error
        except Exception as error:  # noqa: BLE001  grpc would tell the client the text of it
            call.ended(error)
            refusal = refusal_of(error, call, log)
        else:
            close(call, ended)
            if replies is not None:
                replies.begin(answer, context)
            return answer
        close(call, ended)
        await abort(context, refusal)
        return None

    return handler


def close(call: Call, ended: Note) -> None:
    """Pass a call that is over to `ended`, and drop what that needed."""
    try:
        ended(call)
    finally:
        call.forget()


def refusal_of(error: Exception, call: Call, log: Log) -> Refusal:
    """The refusal for an error: ours with its reason, the model server's as it came, a fault by the call's id only."""
    if isinstance(error, GuardError):
        return call.refusal(error)
    if isinstance(error, grpc.aio.AioRpcError):
        trailing = (*downwards(error.trailing_metadata()), *call.marks)
        return Refusal(error.code(), error.details() or "", trailing)
    log.error("internal", **call.names, cause=repr(error))
    return Refusal(grpc.StatusCode.INTERNAL, f"the guard failed; guard-id {call.id}", call.marks)


async def abort(context: Any, refusal: Refusal) -> None:
    """End the call with a status; the library raises an error for that, which it keeps with the call.

    With its traceback and its context the error would also keep the frames, and these the call and its message: a cycle
    that only the garbage collector finds, 120 MiB a refusal.
    """
    try:
        await context.abort(refusal.code, refusal.details, refusal.trailing)
    except grpc.aio.AbortError as aborted:
        aborted.__context__ = aborted.__traceback__ = None
