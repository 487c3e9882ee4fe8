"""Reading on several threads: the results come in order, and few of them wait to be taken.

Rule 1: at most `AHEAD_READS` results a thread wait to be taken; a failure, or an end to the taking, ends the reading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from guard.container import cpus

AHEAD_READS = 2  # results a thread

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(call: Callable[[T], R], arguments: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Yield the result of a call on each argument, in their order, computed on as many threads as there are CPUs.

    Decoding pictures, hashing and numpy's arithmetic release Python's lock, so that threads are enough.
    """
    workers = threads or cpus()
    remaining = iter(arguments)
    if workers == 1:
        yield from map(call, remaining)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="guard-read")
    waiting: deque[Future[R]] = deque()
    try:
        waiting.extend(pool.submit(call, one) for one in islice(remaining, AHEAD_READS * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(call, one) for one in islice(remaining, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
