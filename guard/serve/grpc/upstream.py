"""The guarded model server as the guard sees it: calls go through as bytes. `upstream_watch` asks whether it is ready.

Rule 1: the upstream gets the bytes that were handed in; nothing is re-serialized here.
Rule 2: end-to-end metadata passes both ways, `guard-*` and what belongs to one hop never.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio

from guard.config import ServeConfig
from guard.errors import UpstreamDown
from guard.serve.grpc.channel import open_channel
from guard.serve.grpc.metadata import Metadata, downwards
from guard.serve.grpc.upstream_channel import UpstreamChannel
from guard.serve.identities import Identity

SERVICE = "inference.GRPCInferenceService"


# What writing to a call raises where the upstream has ended it: its status, the library's own state, or the core's.
UPSTREAM_ENDED = (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.InternalError)


def path(method: str) -> str:
    """The full name of a method of the inference service."""
    return f"/{SERVICE}/{method}"


def note_end(over: asyncio.Future[None], call: Any) -> None:  # noqa: ARG001  the library passes the call
    """Set the future that waits for a call's end, unless it was given up."""
    if not over.done():
        over.set_result(None)


def end_in_core(call: Any) -> None:
    """Cancel a call of ours so that gRPC gives back what it holds.

    A cancelled task of grpc.aio leaves its operations behind, with all of the call's metadata, for good: 300 KB for
    each client that leaves with a header that large. Ended in the core, the operations finish.
    """
    core = getattr(call, "_cython_call", None)
    if core is None or not hasattr(core, "cancel"):
        call.cancel()
    else:
        core.cancel("nobody waits for the answer any more")


async def write_to(call: Any, message: bytes) -> None:
    """Write a message to a call of ours, and leave its status to the model server where that ends the call meanwhile.

    grpc.aio's own `write` gives a call INTERNAL ("Internal error from Core") once the core takes no further message,
    although the status with which the model server ended it is still to be read. So the core is written to.

    Raises:
        one of UPSTREAM_ENDED: the call is over, or no longer written to; reading from it tells how it ended.
    """
    core = getattr(call, "_cython_call", None)
    if core is None or not hasattr(core, "send_serialized_message"):
        await call.write(message)
        return
    await call.wait_for_connection()
    if call.done():
        raise asyncio.InvalidStateError
    await core.send_serialized_message(message)


@dataclass(frozen=True)
class Answer:
    """A unary answer as it came, with its metadata."""

    body: bytes
    initial: Metadata
    trailing: Metadata


class Upstream:
    """A channel to the model server, which lasts as long as `open`."""

    def __init__(self, channels: UpstreamChannel, address: str, *, timeout_s: float) -> None:
        self.channels = channels
        self.address = address
        self.timeout_s = timeout_s
        self.doubt = asyncio.Event()  # whether it is still there: a call has failed

    @staticmethod
    @asynccontextmanager
    async def open(
        config: ServeConfig, *, max_message_bytes: int, identity: Callable[[], Identity | None] = lambda: None
    ) -> AsyncIterator[Upstream]:
        """Open a channel and never wait for the model server: it may start after the guard, or go and come back.

        `identity` returns the guard's certificates for the model server, as they are when a channel is opened.

        Raises:
            ConfigError: as `open_channel`.
        """
        channels = UpstreamChannel(
            lambda: open_channel(config, max_message_bytes=max_message_bytes, identity=identity()),
            timeout_s=config.upstream_timeout_s,
        )
        try:
            yield Upstream(channels, config.upstream, timeout_s=config.upstream_timeout_s)
        finally:
            await channels.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel for new calls."""
        return self.channels.current.channel

    async def unary(self, method: str, request: bytes, metadata: Metadata, timeout_s: float | None) -> Answer:
        """Make a unary call, bytes in and bytes out.

        Raises:
            UpstreamDown: the connection failed.
            grpc.aio.AioRpcError: the model server answered with an error.
        """
        with self.channels.use() as used:
            start: Any = used.channel.unary_unary(method)  # without serializers: bytes in, bytes out
            call = start(request, metadata=grpc.aio.Metadata(*metadata), timeout=timeout_s)
            over = asyncio.get_running_loop().create_future()
            call.add_done_callback(partial(note_end, over))
            try:
                await over  # and not the call itself, which a cancelled task would end in the library alone
                body: bytes = await call
            except grpc.aio.AioRpcError as error:
                raise self.judged(error, connected=used.connected) from error
            except asyncio.CancelledError:
                end_in_core(call)
                raise
            return Answer(body, downwards(await call.initial_metadata()), downwards(await call.trailing_metadata()))

    def stream(self, method: str, metadata: Metadata, timeout_s: float | None) -> Any:
        """Start an opaque call of any arity, to be written to and read from; its error is for `judged_now`."""
        used = self.channels.current
        start: Any = used.channel.stream_stream(method)
        call = start(metadata=grpc.aio.Metadata(*metadata), timeout=timeout_s)
        used.begin()
        call.add_done_callback(lambda _: used.end())
        return call

    def judged_now(self, error: grpc.aio.AioRpcError) -> Exception:
        """Return the error of a call of `stream`, or UpstreamDown where the connection is to blame."""
        return self.judged(error, connected=self.channels.current.connected)

    def judged(self, error: grpc.aio.AioRpcError, *, connected: bool) -> Exception:
        """Return `error`, or UpstreamDown where the connection is to blame and not the model server itself."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return error
        self.doubt.set()
        if connected:
            return error
        return UpstreamDown("the model server behind the guard cannot be reached; nothing answered this request")

    async def ask(self, method: str, request: Any) -> bytes:
        return (await self.unary(path(method), request.SerializeToString(), (), self.timeout_s)).body


def failure_code(error: Exception | None) -> str:
    """The gRPC status with which the upstream failed."""
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else UpstreamDown.status
