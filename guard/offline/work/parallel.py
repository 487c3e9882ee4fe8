"""Calls side by side on threads, one a core; ONNX Runtime and torch release Python's lock while they compute.

Rule 1: what a call computes does not depend on how many run beside it: torch works on one thread in each.
Rule 2: whatever ends the first call that fails, an interrupt too, ends all others at their next look at `Stop`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from guard.offline.work.tasks import TaskCallbacks, Tasks

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

    def count(self, steps: int) -> None:
        """Ignore the steps, which are not reported."""

    def note(self, text: str) -> None:
        """Ignore the text, which is not reported."""


class WatchedTasks(Stop):
    """Stop signal of tasks in this process, whose steps are reported by one thread at a time."""

    def __init__(self, listener: TaskCallbacks[Any]) -> None:
        super().__init__()
        self.listener = listener
        self.turn = threading.Lock()

    def count(self, steps: int) -> None:
        with self.turn:
            self.listener.counted(steps)

    def note(self, text: str) -> None:
        with self.turn:
            self.listener.noted(text)


class Stopped(Exception):
    """Exception in a worker: another call failed, or the user interrupted."""


def cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(
    calls: Sequence[Callable[[], T]], workers: int, stop: Stop, done: Callable[[int], object] | None = None
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


@dataclass(frozen=True)
class Threads:
    """Executor in this process: one task a thread, on as many threads as it was given, or one a core."""

    count: int | None = None

    @property
    def workers(self) -> int:
        return cores() if self.count is None else self.count

    @property
    def processes(self) -> int:
        return 1

    @property
    def max_threads(self) -> int:
        return cores()

    @property
    def elsewhere(self) -> bool:
        return False

    def device(self, *, accelerated: bool) -> str:
        return "cuda" if accelerated and torch.cuda.is_available() else "cpu"

    def run(self, tasks: Tasks[T], listener: TaskCallbacks[T] | None = None) -> list[T]:
        """Return the results in order; a result is kept by the thread that computed it."""
        hearing: TaskCallbacks[T] = listener or TaskCallbacks()
        watch = WatchedTasks(hearing)

        def call(number: int) -> T:
            found = tasks.work(tasks.shared, tasks.parts[number], watch)
            hearing.kept(number, found)
            return found

        calls = [partial(call, number) for number in range(len(tasks.parts))]
        if not tasks.alone:
            return side_by_side(calls, self.workers, watch, hearing.done)
        results = []
        with torch_threads(tasks.threads):
            for number, one in enumerate(calls):
                results.append(one())
                hearing.done(number)
        return results


OWN_THREADS = Threads()  # as many as this process may run on


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch run on so many threads within the context, whatever it ran on before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """Let torch run on one thread within the context, whatever it ran on before."""
    return torch_threads(1)
