"""Reading of a request's body: with a permit for memory, a limit for time, and framing that no two servers read apart.

Rule 1: nothing is read without a permit, and a permit is held as long as the body is.
Rule 2: a body that does not come whole in time ends its request, and no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from guard.errors import Expired, MalformedRequest, Overloaded, TooLarge
from guard.serve.grpc.door import Door
from guard.serve.permits import FULL, Permit
from guard.serve.rest.headers import Headers, values

Result = TypeVar("Result")


@asynccontextmanager
async def body_of(request: Request, headers: Headers, door: Door) -> AsyncIterator[tuple[bytes, Permit]]:
    """Read a request's body as it came; its memory is held within the block, by a permit for what it may unpack to.

    Raises:
        MalformedRequest: its framing is ambiguous.
        TooLarge: it is larger than any request may be.
        Overloaded: there is no memory for it.
        Expired: it did not come in time.
        ClientDisconnect: the client left.
    """
    check_framing(headers, door.largest_bytes)
    async with door.permits.permit(wait_s=door.read_timeout_s) as permit:
        try:
            body = await read(request, permit, door)
            if not values(headers, "content-encoding"):
                permit.shrink(len(body))
            yield body, permit
        finally:
            door.tidy(permit.size_bytes)


def check_framing(headers: Headers, largest_bytes: int) -> None:
    """Raise MalformedRequest or TooLarge by what the headers say of the body."""
    lengths = values(headers, "content-length")
    if lengths and values(headers, "transfer-encoding"):
        raise MalformedRequest("the request has both Content-Length and Transfer-Encoding; send one of them")
    if lengths and int(lengths[0]) > largest_bytes:
        raise TooLarge(
            f"the body has {lengths[0]} bytes, more than max_message_bytes = {largest_bytes}; send fewer items"
        )


async def read(request: Request, permit: Permit, door: Door) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async with permit.read_within(door.read_timeout_s):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > door.largest_bytes:
                    raise TooLarge(f"the body has more than max_message_bytes = {door.largest_bytes}; send fewer items")
    except TimeoutError:
        if permit.given_up:
            raise Overloaded(FULL) from None
        raise Expired(
            f"the body did not come whole within {door.read_timeout_s:.3g} s; nothing was forwarded"
        ) from None
    return b"".join(parts)


async def unless_left(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Await work on a request whose body is read, and end it when the client leaves. Raises ClientDisconnect."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(left(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
