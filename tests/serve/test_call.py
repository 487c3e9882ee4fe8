"""How what is raised inside a call becomes its end."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any

import grpc.aio
import pytest

from guard.serve.call import Call
from guard.serve.log import Log


@pytest.mark.parametrize(("left_s", "end"), [(60.0, "cancelled"), (-0.1, "expired")])
@pytest.mark.parametrize("error", [asyncio.CancelledError(), grpc.aio.InternalError("execute_batch failed")])
def test_a_client_that_left_is_no_fault_of_ours(error: BaseException, left_s: float, end: str) -> None:
    """gRPC says it with one exception while the guard reads or waits, and with another while it writes."""
    written = io.StringIO()
    call = Call(None, time.monotonic() + left_s)

    async def story() -> Any:
        async with call.answering(Log("info", written)):
            raise error

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(story())
    assert call.end == end
    assert written.getvalue() == ""
