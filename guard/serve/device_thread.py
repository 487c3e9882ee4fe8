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
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Answer = TypeVar("Answer")


class DeviceThread:
    """A thread that runs programs one at a time, and beside it one that opens bundles, until `close`."""

    def __init__(self) -> None:
        self.programs = ThreadPoolExecutor(max_workers=1, thread_name_prefix="program")
        self.openings = ThreadPoolExecutor(max_workers=1, thread_name_prefix="opening")

    async def run(self, work: Callable[[], Answer]) -> Answer:
        """Run `work` on the device, after what others have asked for before."""
        return await asyncio.get_running_loop().run_in_executor(self.programs, work)

    async def open(self, work: Callable[[], Answer]) -> Answer:
        """Run `work` that prepares programs without running them."""
        return await asyncio.get_running_loop().run_in_executor(self.openings, work)

    def close(self) -> None:
        """Let the threads end after their current work; a hung device is not waited for."""
        for pool in (self.programs, self.openings):
            pool.shutdown(wait=False, cancel_futures=True)
