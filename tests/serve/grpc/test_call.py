"""How what is raised inside a call becomes its end."""

from __future__ import annotations

import asyncio
import io

import grpc.aio
import pytest

from guard.errors import Expired, Rejected, UpstreamDown
from guard.serve.grpc.call import Call
from guard.serve.grpc.outermost import outermost
from guard.serve.log import Log


@pytest.mark.parametrize(("left_s", "end"), [(60.0, "cancelled"), (-0.1, "expired")])
@pytest.mark.parametrize("error", [asyncio.CancelledError(), grpc.aio.InternalError("execute_batch failed")])
def test_a_client_that_left_is_no_fault_of_ours(error: BaseException, left_s: float, end: str) -> None:
    """gRPC says it with one exception while the guard reads or waits, and with another while it writes."""
    written, books, left = io.StringIO(), [], []

    async def work(call: Call) -> None:
        left.append(call)
        raise error

    class Context:
        def time_remaining(self) -> float:
            return left_s

    handler = outermost(work, log=Log("info", written), ended=lambda call: books.append((call.end, call.error)))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(handler(None, Context()))  # type: ignore[arg-type]
    assert books == [(end, None)]
    assert written.getvalue() == ""


@pytest.mark.parametrize(
    ("error", "code", "end"),
    [
        (Rejected("no"), grpc.StatusCode.PERMISSION_DENIED, "refused"),
        (Expired("late"), grpc.StatusCode.DEADLINE_EXCEEDED, "expired"),
        (UpstreamDown("gone"), grpc.StatusCode.UNAVAILABLE, "failed"),
        (RuntimeError("a secret"), grpc.StatusCode.INTERNAL, "refused"),
    ],
)
def test_whatever_is_raised_is_one_status_and_one_entry_in_the_books(
    error: Exception, code: grpc.StatusCode, end: str
) -> None:
    written, story = io.StringIO(), []

    class Context:
        def time_remaining(self) -> float:
            return 60.0

        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return (("x-request-id", "seven"),)

        async def abort(self, code: grpc.StatusCode, details: str, trailing: object) -> None:
            story.append((code, details))

    async def work(call: Call) -> bytes:
        raise error

    handler = outermost(work, log=Log("info", written), ended=lambda call: story.append(call.end))
    assert asyncio.run(handler(None, Context())) is None  # type: ignore[arg-type]
    assert [story[0], story[1][0]] == [end, code], "the books, then the client"
    assert "a secret" not in story[1][1]
    assert ("a secret" in written.getvalue()) is isinstance(error, RuntimeError)
    assert ('"request_id": "seven"' in written.getvalue()) is isinstance(error, RuntimeError)
