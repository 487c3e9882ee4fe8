"""The channel to the model server, which is replaced while calls go on: grpc.aio's channels keep their credentials.

How it works. A new channel is opened beside the one at work and asked whether the server lives; if it gets an answer,
new calls go there. The old one ends with its last call. If it gets none while the old one is connected, the new
certificate is at fault, and all stays as it was until the next attempt. Where neither is connected, the new one is as
good.

Rule 1: no call is lost by a replacement: each ends on the channel that it began on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import grpc.aio

LIVE = "/inference.GRPCInferenceService/ServerLive"


class CountedChannel:
    """A channel, and how many calls are on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls = 0
        self.retired = False
        self.idle = asyncio.Event()  # it is retired, and its last call is over

    def begin(self) -> None:
        self.calls += 1

    def end(self) -> None:
        self.calls -= 1
        self.rest()

    def retire(self) -> None:
        self.retired = True
        self.rest()

    def rest(self) -> None:
        if self.retired and not self.calls:
            self.idle.set()

    @property
    def connected(self) -> bool:
        return self.channel.get_state() is grpc.ChannelConnectivity.READY


class UpstreamChannel:
    """The channel to the model server at this moment; `renew` replaces it."""

    def __init__(self, make: Callable[[], grpc.aio.Channel], *, timeout_s: float) -> None:
        self.make, self.timeout_s = make, timeout_s
        self.current = CountedChannel(make())
        self.closing: set[asyncio.Task[None]] = set()

    @contextmanager
    def use(self) -> Iterator[CountedChannel]:
        """The channel for a call that begins and ends within the block."""
        used = self.current
        used.begin()
        try:
            yield used
        finally:
            used.end()

    async def renew(self) -> str | None:
        """Replace the channel; where the new one gets no answer and the old one does, return why it was kept."""
        fresh = CountedChannel(self.make())
        if self.current.connected and (fault := await self.fault(fresh)) is not None and self.current.connected:
            await fresh.channel.close()
            return fault
        old, self.current = self.current, fresh
        old.retire()
        task = asyncio.get_running_loop().create_task(close_when_idle(old))
        self.closing.add(task)
        task.add_done_callback(self.closing.discard)
        return None

    async def fault(self, fresh: CountedChannel) -> str | None:
        """What is wrong with a new channel; None where the server answers, whatever it says."""
        ask: Any = fresh.channel.unary_unary(LIVE)
        try:
            await ask(b"", timeout=self.timeout_s, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            return None if fresh.connected else str(error.details())
        return None

    async def close(self) -> None:
        tasks = tuple(self.closing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.current.channel.close()


async def close_when_idle(old: CountedChannel) -> None:
    try:
        await old.idle.wait()
    finally:
        with suppress(grpc.aio.UsageError):
            await old.channel.close()
