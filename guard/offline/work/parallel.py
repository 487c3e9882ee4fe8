"""Calls side by side on threads, one a core; ONNX Runtime and torch release Python's lock while they compute.

Rule 1: what a call computes does not depend on how many run beside it: torch works on one thread in each.
Rule 2: whatever ends the first call that fails, an interrupt too, ends all others at their next look at `Stop`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Stop:
    """Stop signal that workers look at before they go on; only `side_by_side` sets it."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.cause: BaseException | None = None  # what the first call that failed raised

    def look(self) -> None:
        """Raise Stopped once the work is to end."""
        if self.asked.is_set():
            raise Stopped


class Stopped(Exception):
    """Exception in a worker: another call failed, or the user interrupted."""


def cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(
    calls: Sequence[Callable[[], T]], workers: int, stop: Stop, done: Callable[[int], None] | None = None
) -> list[T]:
    """Return the results of the calls, in their order; `done` receives the number of each, in the same order.

    One worker is the caller's own thread.
    """
    results: list[T] = []
    with one_thread(), closing(following(calls, workers, stop)) as coming:
        for number, result in enumerate(coming):
            results.append(result)
            if done is not None:
                done(number)
    return results


def following(calls: Sequence[Callable[[], T]], workers: int, stop: Stop) -> Generator[T, None, None]:
    if workers == 1 or len(calls) == 1:
        yield from (call() for call in calls)
        return
    pool = ThreadPoolExecutor(
        workers, thread_name_prefix="guard-craft", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        futures = [pool.submit(noted, call, stop) for call in calls]
        while futures:
            yield futures.pop(0).result()  # popped, so that a large result can be freed
    except Stopped:
        raise stop.cause or Stopped from None
    finally:
        stop.asked.set()
        pool.shutdown(wait=True, cancel_futures=True)


def noted(call: Callable[[], T], stop: Stop) -> T:
    """Run a call in a worker; a failure ends the others before its result is asked for."""
    stop.look()
    try:
        return call()
    except Stopped:
        raise
    except BaseException as error:
        stop.cause = stop.cause or error
        stop.asked.set()
        raise


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch run on one thread within the context, whatever it ran on before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
