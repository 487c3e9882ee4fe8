"""The door of a listener: reads calls' messages, with a permit for memory, a limit for time, and bounded unpacking.

How it works. gRPC's core would unpack gzip by itself, on the way to the event loop, which then copies a thousand small
pieces: 65 KB on the wire hold all calls up for a quarter of a second. So the core hands messages over as they came, and
they are unpacked here, on a thread, up to `max_message_bytes`. Whether a message is packed is told by its first bytes,
since the flag stays in the core: 1f 8b, gzip's, begin no protobuf message; 78, zlib's, would be a field 15 that no
message of the protocol has, and counts only if the whole is a zlib stream with a right checksum.

Rule 1: nothing is read or unpacked without a permit, and a permit is held as long as the message is.
Rule 2: a message that does not come whole in time ends its call, and no other.
Rule 3: what is large is unpacked and parsed off the event loop.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import grpc
import grpc.aio

from guard.errors import Expired, MalformedRequest, Overloaded, TooLarge, Unchecked
from guard.serve.allocator import give_back
from guard.serve.grpc.call import Call
from guard.serve.grpc.goaway import Replies
from guard.serve.grpc.listener import Handler
from guard.serve.grpc.outermost import Answer, Note, nothing, outermost
from guard.serve.log import Log
from guard.serve.permits import FULL, Permit, Permits

INLINE_BYTES = 64 * 1024  # smaller messages are worked on in the event loop: a thread costs more
LARGE_BYTES = 8 * 2**20
TIDY_S = 0.5
WORKER_THREADS = 2
MAX_STREAMS = 64
MAX_CONNECTION_STREAMS = 32  # of them, so that others find a place beside a client that floods
EMPTY_POLL_S = 0.01

SHUTTING_DOWN = "the guard is shutting down; send the request to another replica"

Result = TypeVar("Result")
Work = Callable[[bytes, Call], Awaitable[bytes]]


class Door:
    """A reader of messages for the methods of a listener, which also follows each call to its end."""

    def __init__(
        self, permits: Permits, *, largest_bytes: int, read_timeout_s: float, log: Log, identify: Note = nothing
    ) -> None:
        """Create a door; `identify` tells who calls, or refuses, before anything is read."""
        self.permits = permits
        self.identify = identify
        self.largest_bytes = largest_bytes
        self.read_timeout_s = read_timeout_s
        self.log = log
        self.threads = ThreadPoolExecutor(WORKER_THREADS, thread_name_prefix="message")
        self.calls = 0  # that have come and not ended
        self.streams: Counter[str] = Counter()  # open ones, by connection
        self.replies = Replies()
        self.tidying: asyncio.TimerHandle | None = None
        self.closed = False

    def unary(
        self, work: Work, *, ended: Note = nothing, begun: Note = nothing, identify: Note | None = None
    ) -> Handler:
        """Build the handler of a method of one request and one answer; `begun` may refuse a call before it is read.

        `identify` stands for the door's own.
        """
        identified = self.identify if identify is None else identify

        async def answer(call: Call) -> bytes:
            if self.closed:
                raise Unchecked(SHUTTING_DOWN, elsewhere=True)
            identified(call)
            begun(call)
            with self.counted():
                async with self.message(call) as request:
                    found = await work(request, call)
            return found

        return grpc.stream_unary_rpc_method_handler(self.outermost(answer, ended=ended))

    def streaming(self, work: Callable[[Call], Awaitable[None]], *, ended: Note = nothing) -> Handler:
        """Build the handler of a method of many messages both ways, which `work` reads and writes itself."""

        async def pass_through(call: Call) -> None:
            self.identify(call)
            with self.counted():
                await work(call)

        return grpc.stream_stream_rpc_method_handler(self.outermost(pass_through, ended=ended))

    def outermost(
        self, work: Callable[[Call], Awaitable[Answer]], *, ended: Note = nothing
    ) -> Callable[[Any, Any], Awaitable[Answer | None]]:
        """Build the handler around `work`, with this door's log and its answers under way."""
        return outermost(work, log=self.log, replies=self.replies, ended=ended)

    async def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield the messages of a call that may stay silent for long; memory is taken once a message is there.

        Messages on their way are bounded by the number of such calls alone (`MAX_STREAMS`).

        Raises:
            Overloaded: as `stream_place`, or there is no memory for a message.
            TooLarge: as `message`.
        """
        with self.stream_place(call):
            while (came := await call.context.read()) is not grpc.aio.EOF:
                arrived = [came]
                del came
                async with self.held(arrived.pop()) as message:
                    yield message
                    del message

    @asynccontextmanager
    async def held(self, came: bytes) -> AsyncIterator[bytes]:
        """Unpack a message that is here; its memory is held within the block, if nothing else refers to what came.

        A packed one may become as large as any, so that much is set aside before it is unpacked.

        Raises:
            Overloaded: there is no memory for it.
            TooLarge: as `plain`.
        """
        size_bytes = self.permits.largest_bytes if is_packed(came) else len(came)
        async with self.permits.holding(size_bytes) as permit:
            try:
                message = await self.plain(came)
                del came
                permit.shrink(len(message))
                yield message
            finally:
                self.tidy(permit.size_bytes)

    @contextmanager
    def stream_place(self, call: Call) -> Iterator[None]:
        """Count a call as one of the open streams within the block.

        Raises:
            Overloaded: too many are open, on all connections or on the call's own.
        """
        client, total = call.context.peer(), self.streams.total()
        if total >= MAX_STREAMS:
            raise Overloaded(f"{total} streams are open already; try again later or elsewhere")
        if self.streams[client] >= MAX_CONNECTION_STREAMS:
            raise Overloaded(f"{self.streams[client]} streams are open on this connection already; close some")
        self.streams[client] += 1
        try:
            yield
        finally:
            self.streams[client] -= 1
            if not self.streams[client]:
                del self.streams[client]

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a call as under way within the block."""
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    async def empty(self, within_s: float) -> None:
        """Refuse new unary calls, and wait up to `within_s` for the calls that are under way."""
        self.closed = True
        end = time.monotonic() + within_s
        while self.calls and time.monotonic() < end:
            await asyncio.sleep(EMPTY_POLL_S)

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def message(self, call: Call) -> AsyncIterator[bytes]:
        """Read the call's first message, unpacked; the call holds its memory within the block.

        Raises:
            Overloaded: there is no memory for the message.
            Expired: the message did not come in time.
            TooLarge: the message is larger than any request may be.
            MalformedRequest: the call ended without one.
        """
        async with self.permits.permit(wait_s=call.remaining_s()) as permit:
            try:
                came = await self.read(call, permit)
                request = await self.plain(came)
                del came
                permit.shrink(len(request))
                yield request
            finally:
                self.tidy(permit.size_bytes)

    def tidy(self, size_bytes: int) -> None:
        """Schedule the return of memory after a large message, or one that never came whole."""
        if size_bytes >= LARGE_BYTES and self.tidying is None:
            self.tidying = asyncio.get_running_loop().call_later(TIDY_S, self.give_back)

    def give_back(self) -> None:
        self.tidying = None
        with suppress(RuntimeError):  # it is closed
            self.threads.submit(give_back)

    async def read(self, call: Call, permit: Permit) -> bytes:
        limit_s = min(self.read_timeout_s, call.remaining_s())
        try:
            async with permit.read_within(limit_s):
                came: Any = await call.context.read()
        except TimeoutError:
            if permit.given_up:
                raise Overloaded(FULL) from None
            raise Expired(f"no whole message came within {limit_s:.3g} s; nothing was forwarded") from None
        if came is grpc.aio.EOF:
            raise MalformedRequest(
                f"the call brought no message, or one larger than max_message_bytes = {self.largest_bytes}"
            )
        return bytes(came)

    async def plain(self, came: bytes) -> bytes:
        """Unpack a message, if it is packed. Raises TooLarge."""
        if not is_packed(came):
            return came
        return await asyncio.get_running_loop().run_in_executor(self.threads, unpacked, came, self.largest_bytes)

    async def aside(self, size_bytes: int, work: Callable[[], Result]) -> Result:
        """Run `work` on a message of `size_bytes`, off the event loop where it may take long."""
        if size_bytes <= INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)


def is_packed(message: bytes) -> bool:
    """Whether a message looks like gzip's or zlib's format."""
    head = message[:2]
    return head == b"\x1f\x8b" or (head[:1] == b"\x78" and int.from_bytes(head, "big") % 31 == 0)


def unpacked(message: bytes, largest_bytes: int) -> bytes:
    """Unpack a message; one that only looks packed is returned as it is. Raises TooLarge."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by the header
    try:
        plain = stream.decompress(message, largest_bytes + 1)
    except zlib.error:
        return message
    if len(plain) > largest_bytes:
        del plain  # the error's traceback would keep it
        raise TooLarge(f"the message unpacks to more than max_message_bytes = {largest_bytes}; send fewer items")
    return plain if stream.eof and not stream.unused_data else message
