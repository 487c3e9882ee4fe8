"""Permits for the memory of clients' messages, granted before these are read.

How it works. A message's size is known only when it is whole, so the largest that may come is reserved before anything
is read, and what the message did not need is given back once it is there. Reserved and held bytes together never exceed
the limit. Example: a limit of 256 MiB and messages of at most 32 MiB let eight calls read at once; as soon as one has
its 12 KB, all but 12 KB of its permit is free again.

Rule 1: permits are granted in the order in which they were asked for: a small one does not overtake a large one.
Rule 2: no call waits for longer than `WAIT_S`, and at most `MAX_WAITING_CALLS` wait; all others are refused at once.
Rule 3: a message that does not end makes room: when others wait, a read that has lasted `PATIENCE_S` is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from guard.errors import Overloaded

WAIT_S = 0.2
MAX_WAITING_CALLS = 256
PATIENCE_S = 1.0
FULL = "the messages that are being read and held take all the memory set aside for them; try again later or elsewhere"


class Permit:
    """A number of bytes that one call may hold, until it is released."""

    def __init__(self, permits: Permits, size_bytes: int) -> None:
        self.permits = permits
        self.size_bytes = size_bytes
        self.reading: asyncio.Timeout | None = None
        self.reading_since = 0.0
        self.given_up = False  # others needed the room

    @asynccontextmanager
    async def read_within(self, limit_s: float) -> AsyncIterator[None]:
        """Read a message within the block. Raises TimeoutError after `limit_s`, or when the read is given up."""
        self.reading_since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(limit_s) as self.reading:
                self.permits.reading[self] = None
                yield
        finally:
            self.permits.reading.pop(self, None)

    def give_up(self) -> None:
        self.given_up = True
        if self.reading is not None:
            self.reading.reschedule(0)

    def shrink(self, size_bytes: int) -> None:
        """Give back all but `size_bytes`; a permit never grows."""
        spare = self.size_bytes - size_bytes
        if spare > 0:
            self.size_bytes = size_bytes
            self.permits.give_back(spare)

    @asynccontextmanager
    async def with_more(self, size_bytes: int) -> AsyncIterator[None]:
        """Hold `size_bytes` in all within the block, or all there is if that is less. Raises Overloaded."""
        more = min(size_bytes, self.permits.limit_bytes) - self.size_bytes
        if more <= 0:
            yield
            return
        async with self.permits.holding(more):
            yield


class Permits:
    """The memory of all messages that are being read or held, in bytes."""

    def __init__(self, limit_bytes: int, *, largest_bytes: int, patience_s: float = PATIENCE_S) -> None:
        self.limit_bytes = limit_bytes
        self.largest_bytes = min(largest_bytes, limit_bytes)
        self.patience_s = patience_s
        self.taken_bytes = 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.reading: dict[Permit, None] = {}  # in the order in which they began

    @asynccontextmanager
    async def permit(self, *, wait_s: float) -> AsyncIterator[Permit]:
        """Hold a permit for one message of the largest size within the block.

        Raises:
            Overloaded: there was none within the shorter of `wait_s` and `WAIT_S`.
        """
        permit = Permit(self, self.largest_bytes)
        await self.take(self.largest_bytes, min(wait_s, WAIT_S))
        try:
            yield permit
        finally:
            self.give_back(permit.size_bytes)

    @asynccontextmanager
    async def holding(self, size_bytes: int) -> AsyncIterator[Permit]:
        """Hold memory within the block for bytes that are here, or may soon be. Raises Overloaded: they are too many.

        What takes more than there is waits until it is alone.
        """
        permit = Permit(self, min(size_bytes, self.limit_bytes))
        await self.take(permit.size_bytes, WAIT_S)
        try:
            yield permit
        finally:
            self.give_back(permit.size_bytes)

    async def take(self, size_bytes: int, wait_s: float) -> None:
        if not self.waiting and self.taken_bytes + size_bytes <= self.limit_bytes:
            self.taken_bytes += size_bytes
            return
        self.make_room()
        if len(self.waiting) >= MAX_WAITING_CALLS or wait_s <= 0:
            raise Overloaded(FULL)
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()
        entry = (size_bytes, granted)
        self.waiting.append(entry)
        again = loop.call_later(self.patience_s, self.make_room)
        try:
            async with asyncio.timeout(wait_s):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled():  # granted in the moment in which the wait ended
                self.give_back(size_bytes)
            else:
                with suppress(ValueError):  # others were granted theirs since, and this one was passed over
                    self.waiting.remove(entry)
                self.grant()  # those behind it may fit
            if isinstance(error, TimeoutError):
                raise Overloaded(FULL) from None
            raise
        finally:
            again.cancel()

    def take_spare(self, size_bytes: int) -> bool:
        """Take bytes that are free and that no call waits for, and return whether there were as many."""
        if self.waiting or self.taken_bytes + size_bytes > self.limit_bytes:
            return False
        self.taken_bytes += size_bytes
        return True

    def make_room(self) -> None:
        """Give up the oldest read if it has lasted for `patience_s`."""
        oldest = next(iter(self.reading), None)
        now = asyncio.get_running_loop().time()
        if oldest is not None and now - oldest.reading_since >= self.patience_s:
            del self.reading[oldest]
            oldest.give_up()

    def give_back(self, size_bytes: int) -> None:
        self.taken_bytes -= size_bytes
        self.grant()

    def grant(self) -> None:
        """Grant permits to those in front, as far as their bytes are free."""
        while self.waiting:
            size_bytes, granted = self.waiting[0]
            if self.taken_bytes + size_bytes > self.limit_bytes:
                return
            self.waiting.popleft()
            if not granted.done():
                self.taken_bytes += size_bytes
                granted.set_result(None)
