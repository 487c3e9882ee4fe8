"""The thread on which all programs run, whichever bundle they are of, and the one that opens them.

How it works. Each bundle has its own batcher, which hands over one batch and waits for it. So the queue of this thread
holds one batch a bundle at most (and one repair), and what comes first is run first: the bundles take turns, whatever
waits in front of each. For example, with 1,000 requests of one model waiting, one of another model waits for the batch
that runs, and is in the next.

Rule 1: what runs here is short, a batch at most; what takes longer (reading files, building sessions) is opened beside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class DeviceThread:
    """A thread that runs programs one at a time, and beside it one that opens bundles, until `close`."""

    def __init__(self) -> None:
        self.programs = ThreadPoolExecutor(max_workers=1, thread_name_prefix="program")
        self.outstanding = 0  # pieces of work that wait or run
        self.idle = asyncio.Event()
        self.openings = ThreadPoolExecutor(max_workers=1, thread_name_prefix="opening")

    async def run(self, work: Callable[[], Answer]) -> Answer:
        """Run `work` on the device, after what others have asked for before."""
        loop = asyncio.get_running_loop()
        running = self.programs.submit(work)
        self.outstanding += 1
        running.add_done_callback(partial(self.tell_ended, loop))
        return await asyncio.wrap_future(running)

    def tell_ended(self, loop: asyncio.AbstractEventLoop, running: Future[Any]) -> None:  # noqa: ARG002
        """Tell the event loop, from the thread, that a piece of work is over."""
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self.ended)

    def ended(self) -> None:
        self.outstanding -= 1
        if not self.outstanding:
            self.idle.set()

    async def until_idle(self) -> None:
        """Wait until no other work waits or runs here, and those that wait for its results had their turn."""
        while True:
            await asyncio.sleep(0)
            if not self.outstanding:
                return
            self.idle.clear()
            await self.idle.wait()

    async def open(self, work: Callable[[], Answer]) -> Answer:
        """Run `work` that prepares programs without running them."""
        return await asyncio.get_running_loop().run_in_executor(self.openings, work)

    def close(self) -> None:
        """Let the threads end after their current work; a hung device is not waited for."""
        for pool in (self.programs, self.openings):
            pool.shutdown(wait=False, cancel_futures=True)
