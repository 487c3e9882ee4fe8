"""The order of the replies in one stream: a refusal comes where the reply to its message would have come.

How it works. A client may find the request of a reply by counting, so a refusal that overtakes the replies to earlier
messages would be taken for the answer to one of them. A refusal therefore waits until as many replies have come as
messages had been passed on before it. Example: messages 1 and 2 are passed, 3 is refused, 4 is passed: replies 1 and 2
are delivered, then the refusal, then reply 4, whenever the model answers. A model that answers some messages with
nothing (a decoupled one) could hold a refusal up for good, so none waits longer than `PATIENCE_S`; clients of such a
model tell replies apart by their ids.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

PATIENCE_S = 5.0  # of a refusal, for the replies to earlier messages

Write = Callable[[bytes], Awaitable[None]]


class ReplyOrder:
    """The replies and refusals of one stream, written one after another."""

    def __init__(self, write: Write) -> None:
        self.write = write
        self.writing = asyncio.Lock()
        self.passed_messages = 0
        self.delivered_replies = 0
        self.begun = False  # whether anything was written, and initial metadata with it
        self.waiting: deque[tuple[int, bytes]] = deque()  # messages passed before it, and a refusal
        self.timers: set[asyncio.Task[None]] = set()

    async def deliver(self, reply: bytes) -> None:
        """Write a reply of the model server, and the refusals that waited for it."""
        async with self.writing:
            await self.put(reply)
            self.delivered_replies += 1
            await self.release(self.delivered_replies)

    async def refuse(self, refusal: bytes) -> None:
        """Write a refusal as soon as its place has come."""
        entry = (self.passed_messages, refusal)
        self.waiting.append(entry)
        async with self.writing:
            await self.release(self.delivered_replies)
        if entry in self.waiting:
            timer = asyncio.get_running_loop().create_task(self.overdue(entry[0]))
            self.timers.add(timer)
            timer.add_done_callback(self.timers.discard)

    async def overdue(self, place: int) -> None:
        await asyncio.sleep(PATIENCE_S)
        async with self.writing:
            await self.release(place)

    async def flush(self) -> None:
        """Write all refusals that still wait: no further reply comes."""
        async with self.writing:
            await self.release(self.passed_messages)

    async def release(self, place: int) -> None:
        """Write the refusals whose place is at most this one; the lock is held."""
        while self.waiting and self.waiting[0][0] <= place:
            await self.put(self.waiting.popleft()[1])

    async def put(self, reply: bytes) -> None:
        self.begun = True
        await self.write(reply)

    async def close(self) -> None:
        """End what still waits for its time."""
        timers = tuple(self.timers)
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, return_exceptions=True)
