"""The batcher: requests wait until the device is free, and then as many as fit go there together.

Rule 1: no request affects another: those that are cancelled, expire or fail leave the others of their batch alone.
Rule 2: there is no timer: an idle device takes what is there at once, a busy one then takes what arrived meanwhile.
Rule 3: limits are in rows on the device; load beyond the queue's limit is shed at once.
Rule 4: requests that were cancelled or have expired are dropped before they reach the device.

No sockets and no protocol here; a request is an array, a deadline and a future for its readings.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from guard.cascade import Readings, joined
from guard.errors import Expired, GuardError, MalformedRequest, Overloaded, Unchecked
from guard.serve.request_span import REQUEST_SPAN, RequestSpan, write_program_span

EXPIRED = "the deadline passed while the request waited to be inspected; nothing was forwarded"
SHUTTING_DOWN = "the guard is shutting down; send the request to another replica"

Read = Callable[[NDArray[Any]], Awaitable[Readings]]


class Observer(Protocol):
    """A receiver of the batcher's events, for metrics."""

    def queued(self, rows: int) -> None: ...
    def batched(self, rows: int) -> None: ...
    def dropped(self, reason: str) -> None: ...
    def engine_failed(self) -> None: ...
    def stage(self, name: str, seconds: float) -> None: ...


@dataclass(eq=False)
class QueuedRequest:
    """A request in the queue: its items, its deadline, and the future that gets their readings."""

    images: NDArray[Any]  # [item, ...]
    deadline: float  # of the batcher's clock
    arrived: float
    waiter: asyncio.Future[Readings]
    span: RequestSpan | None = field(default_factory=REQUEST_SPAN.get)  # of the call that waits
    found: list[Readings] = field(default_factory=list)
    started: bool = False
    expired: bool = False

    def dead(self, now: float) -> str | None:
        """The reason why the answer is no longer needed; None while it is."""
        if self.expired or now >= self.deadline:
            return "expired"
        if self.waiter.done():
            return "cancelled" if self.waiter.cancelled() else "failed"
        return None


@dataclass(frozen=True)
class Piece:
    """The part of a request that goes to the device in one batch; a request larger than a batch has several."""

    job: QueuedRequest
    start: int
    stop: int

    @property
    def items(self) -> int:
        return self.stop - self.start

    @property
    def images(self) -> NDArray[Any]:
        return self.job.images[self.start : self.stop]


class Batcher:
    """The queue in front of one device, served while `running` is entered; nothing is read outside of it."""

    def __init__(
        self,
        read: Read,
        observer: Observer,
        *,
        rows_per_item: int,
        max_rows: int,
        max_queue_rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.read = read
        self.observer = observer
        self.rows_per_item = rows_per_item
        self.max_items = max(1, max_rows // rows_per_item)
        self.max_queue_items = max(1, max_queue_rows // rows_per_item)
        self.clock = clock
        self.queue: deque[Piece] = deque()
        self.waiting_items = 0  # in the queue; kept, since a sum over it at every arrival is slowest when it matters
        self.arrival = asyncio.Event()
        self.running_task: asyncio.Task[None] | None = None
        self.on_device: list[Piece] = []
        self.busy_since: float | None = None  # when the batch on the device went there
        self.failures = 0  # batches on which the engine failed
        self.retired = False  # another serves its model now

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve the queue within the block; on leaving, requests that still wait fail as Unchecked."""
        self.start()
        try:
            yield
        finally:
            await self.stop()

    def start(self) -> None:
        """Serve the queue from now on."""
        self.running_task = asyncio.create_task(self.serve(), name="batcher")

    async def stop(self) -> None:
        """Serve the queue no longer; requests that still wait fail as Unchecked."""
        task, self.running_task = self.running_task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        for piece in self.queue:
            fail(piece.job, Unchecked(SHUTTING_DOWN, elsewhere=True))
        self.queue.clear()
        self.waiting_items = 0

    def fail_all(self, error: Callable[[], GuardError]) -> None:
        """Fail every request that waits or is on the device; what the device still makes of them is dropped."""
        for piece in (*self.on_device, *self.queue):
            fail(piece.job, error())
        self.queue.clear()
        self.waiting_items = 0
        self.observer.queued(0)

    def retire(self) -> None:
        """Serve what is here and what still comes, and keep no task beyond that: the batcher ends with its last user.

        A request that began with a bundle finishes on it, however much later it comes to the queue.
        """
        self.retired = True
        self.arrival.set()

    def busy_s(self) -> float:
        """The seconds that the batch on the device has taken so far; 0 while the device is idle."""
        return 0.0 if self.busy_since is None else self.clock() - self.busy_since

    async def submit(self, images: NDArray[Any], deadline: float) -> Readings:
        """Queue `images` [item, ...] and return their readings.

        Raises:
            Overloaded: the queue is full.
            Expired: `deadline` (of the batcher's clock) passed first.
            Unchecked: the engine failed on this request, or the batcher is not running.
            MalformedRequest: the request is larger than the queue can ever hold.
        """
        job = self.admit(images, deadline)
        try:
            async with asyncio.timeout(max(0.0, deadline - self.clock())):
                return await job.waiter
        except TimeoutError as error:
            job.expired = True
            raise Expired(EXPIRED) from error
        finally:
            if job.waiter.cancelled():
                self.forget({job: "expired" if job.expired else "cancelled"})
                self.observer.queued(self.waiting_items * self.rows_per_item)

    def admit(self, images: NDArray[Any], deadline: float) -> QueuedRequest:
        count = len(images)
        if count > self.max_queue_items:
            raise MalformedRequest(
                f"a request of {count} items can never be inspected: the queue holds {self.max_queue_items}; send fewer"
            )
        if self.running_task is None:
            raise Unchecked("the guard is not inspecting: it is starting or shutting down")
        if self.waiting_items + count > self.max_queue_items:
            self.forget_dead()
        if self.waiting_items + count > self.max_queue_items:
            raise Overloaded(f"{self.waiting_items} items wait for inspection already; try again later or elsewhere")
        now = self.clock()
        job = QueuedRequest(images, deadline, now, asyncio.get_running_loop().create_future())
        for start in range(0, count, self.max_items):
            self.queue.append(Piece(job, start, min(start + self.max_items, count)))
        self.waiting_items += count
        self.observer.queued(self.waiting_items * self.rows_per_item)
        self.arrival.set()
        if self.running_task.done():  # it was retired and had nothing left to do
            self.start()
        return job

    def forget_dead(self) -> None:
        """Drop the requests whose answers are no longer needed."""
        now = self.clock()
        reasons = {piece.job: reason for piece in self.queue if (reason := piece.job.dead(now))}
        if reasons:
            self.forget(reasons)

    def forget(self, reasons: Mapping[QueuedRequest, str]) -> None:
        """Take requests out of the queue, and count each that was still in it once, by its reason."""
        kept = deque(piece for piece in self.queue if piece.job not in reasons)
        gone = {piece.job for piece in self.queue if piece.job in reasons}
        self.queue = kept
        self.waiting_items = sum(piece.items for piece in kept)
        for job in gone:
            if reasons[job] != "failed":
                self.observer.dropped(reasons[job])
            fail(job, Expired(EXPIRED))

    async def serve(self) -> None:
        while True:
            await self.arrival.wait()
            batch = self.take()
            if not batch and self.retired:
                return
            if not batch:
                self.arrival.clear()
                continue
            self.busy_since, self.on_device = self.clock(), batch
            try:
                await self.run(batch)
            except asyncio.CancelledError:
                for piece in batch:
                    fail(piece.job, Unchecked(SHUTTING_DOWN, elsewhere=True))
                raise
            finally:
                self.busy_since, self.on_device = None, []

    def take(self) -> list[Piece]:
        """Take the next batch: in order of arrival, without the dropped, as many items as the device takes."""
        self.forget_dead()
        batch: list[Piece] = []
        room = self.max_items
        while self.queue and self.queue[0].items <= room:
            piece = self.queue.popleft()
            self.waiting_items -= piece.items
            room -= piece.items
            batch.append(piece)
            if not piece.job.started:
                piece.job.started = True
                waited_s = self.clock() - piece.job.arrived
                self.observer.stage("queue", waited_s)
                if piece.job.span is not None:
                    piece.job.span.stage("guard.queue", waited_s)
        self.observer.queued(self.waiting_items * self.rows_per_item)
        return batch

    async def read_traced(self, images: NDArray[Any], batch: list[Piece]) -> Readings:
        """Read a batch, with one span for those of its requests that are traced."""
        spans = [piece.job.span for piece in batch if piece.job.span is not None]
        if not spans:
            return await self.read(images)
        began, failed = self.clock(), True
        try:
            readings = await self.read(images)
            failed = False
        finally:
            write_program_span(spans, self.clock() - began, items=len(images), failed=failed)
        return readings

    async def run(self, batch: list[Piece]) -> None:
        """Read a batch together; if that fails, each request of it alone, so that only the faulty one fails."""
        images = batch[0].images if len(batch) == 1 else np.concatenate([piece.images for piece in batch])
        self.observer.batched(len(images) * self.rows_per_item)
        try:
            readings = await self.read_traced(images, batch)
        except Exception as error:  # noqa: BLE001  whatever the engine raises: no request may pass for it, and none may hang
            self.failures += 1
            self.observer.engine_failed()
            if len(batch) == 1:
                fail(batch[0].job, as_unchecked(error))
                return
            for piece in batch:
                if piece.job.dead(self.clock()) is None:
                    await self.run([piece])
            return
        start = 0
        for piece in batch:
            deliver(piece, readings.rows(start, start + piece.items))
            start += piece.items


def deliver(piece: Piece, readings: Readings) -> None:
    job = piece.job
    job.found.append(readings)
    if piece.stop == len(job.images) and not job.waiter.done():
        job.waiter.set_result(job.found[0] if len(job.found) == 1 else joined(job.found))


def fail(job: QueuedRequest, error: GuardError) -> None:
    if not job.waiter.done():
        job.waiter.set_exception(error)


def as_unchecked(error: Exception) -> Unchecked:
    """Wrap an engine's error: the client learns that inspection failed, the operator finds the error in `__cause__`."""
    unchecked = Unchecked("the guard failed while inspecting this request")
    unchecked.__cause__ = error
    return unchecked
