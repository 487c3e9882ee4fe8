"""A wiretap between the guard and the model server: it passes calls on, and tells what came up.

How it works. A model server does not say what it was sent. So where this program starts the guard itself, the guard
forwards to the wiretap and the wiretap to the model server, all as bytes. A call that bears the header `NAME` is
noted under its value. Where a script is laid ready under that value, the wiretap answers by it, and the model server
gets nothing: so answers can be tried that no model server gives on demand, and methods that change the server.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from guard.serve.conformance.reply import Caller, pairs
from guard.serve.grpc.metadata import LEGAL_KEY, ONE_HOP, RESERVED, TRAVELLING, Metadata

NAME = "x-guard-conformance"
HANG_POLL_S = 0.02
MAX_HANG_S = 30.0


@dataclass(frozen=True)
class Script:
    """An answer that the wiretap gives in the model server's place."""

    messages: tuple[bytes, ...] = ()
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    initial: Metadata = ()
    trailing: Metadata = ()
    compression: grpc.Compression | None = None
    hangs: bool = False


@dataclass
class Seen:
    """A call as it came up."""

    method: str
    metadata: Metadata
    remaining_s: float  # until its deadline, infinite where it has none
    messages: list[bytes] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False


@dataclass
class Wiretap(grpc.GenericRpcHandler):
    """A handler of every method, in front of a model server."""

    upstream: Caller
    seen: dict[str, Seen] = field(default_factory=dict)  # by the value of the header NAME
    scripts: dict[str, Script] = field(default_factory=dict)

    def service(self, details: Any) -> Any:
        async def handler(requests: Any, context: Any) -> None:  # noqa: ARG001  the context reads
            await self.handle(str(details.method), context)

        return grpc.stream_stream_rpc_method_handler(handler)

    async def handle(self, method: str, context: Any) -> None:
        metadata = pairs(context.invocation_metadata())
        remaining = context.time_remaining()
        seen = Seen(method, metadata, math.inf if remaining is None else remaining)
        name = next((str(value) for key, value in metadata if key == NAME), None)
        if name is not None:
            self.seen[name] = seen
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                seen.messages.append(message)
            if name in self.scripts:
                await self.play(self.scripts[name], context)
            else:
                await self.forward(method, seen, context)
        except asyncio.CancelledError:
            seen.cancelled = True
            raise
        finally:
            seen.over.set()

    async def play(self, script: Script, context: Any) -> None:
        """Answer a call by a script."""
        for _ in range(int(MAX_HANG_S / HANG_POLL_S) if script.hangs else 0):
            await asyncio.sleep(HANG_POLL_S)
        if script.compression is not None:
            context.set_compression(script.compression)
        if script.initial:
            await context.send_initial_metadata(script.initial)
        for message in script.messages:
            await context.write(message)
        await end(context, script.code, script.details, script.trailing)

    async def forward(self, method: str, seen: Seen, context: Any) -> None:
        """Pass a call of one message on to the model server, and its answers back."""
        timeout_s = None if math.isinf(seen.remaining_s) else seen.remaining_s
        call = self.upstream.start(
            method, b"".join(seen.messages), metadata=passed_on(seen.metadata), timeout_s=timeout_s
        )
        try:
            if initial := passed_on(pairs(await call.initial_metadata())):
                await context.send_initial_metadata(initial)
            with suppress(grpc.aio.AioRpcError):
                while (message := await call.read()) is not grpc.aio.EOF:
                    await context.write(message)
            trailing = passed_on(pairs(await call.trailing_metadata()))
            await end(context, await call.code(), await call.details() or "", trailing)
        finally:
            call.cancel()


def passed_on(metadata: Metadata) -> Metadata:
    """What is not of one hop alone; the guard's own is passed on, since a model server gets it."""
    return tuple(
        (key, value)
        for key, value in metadata
        if (key in TRAVELLING if key.startswith(RESERVED) else key not in ONE_HOP and LEGAL_KEY.fullmatch(key))
    )


async def end(context: Any, code: grpc.StatusCode, details: str, trailing: Metadata) -> None:
    """End a call with a status."""
    if code is grpc.StatusCode.OK:
        context.set_trailing_metadata(trailing)
    else:
        await context.abort(code, details, trailing)


@asynccontextmanager
async def tapping(upstream: Caller) -> AsyncIterator[tuple[Wiretap, str]]:
    """Listen on a free port within the block; yields the wiretap and its address."""
    wiretap = Wiretap(upstream)
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers([wiretap])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield wiretap, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
