"""The queue of requests that are inspected after they were forwarded, for `shadow = "queue"`: no caller waits for it.

How it works. A request of a model in mode shadow passes at once. What is needed to inspect it, its message, waits here.
Whenever the device has nothing else to do, a slice of the first request goes there: as many items as take `SLICE_S`, or
one. So a request that a caller waits for meets at most one such slice. Its verdict is counted and logged as `shadow`
would have it (`would_reject` and the like).

Rule 1: memory is bounded: a message takes part of the memory for messages, no more than a quarter of it, and only what
        is free. What finds no room is dropped, and counted.
Rule 2: nothing that goes wrong here reaches a caller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from guard.cascade import Readings, joined
from guard.errors import BreakerOpen, GuardError, MalformedRequest, Uninspectable
from guard.judge import Inspection
from guard.policy import Action
from guard.serve.aside import Aside
from guard.serve.guarded_model import GuardedModel
from guard.serve.inference_records import InferenceRecords
from guard.serve.inspector import label, verdict_fields
from guard.serve.permits import Permits
from guard.serve.tensor import Decoded

SLICE_S = 0.005
MEMORY_DIVISOR = 4  # of the memory for messages, one part in so many
MAX_WAITING_MESSAGES = 1024
DROPPED, FAILED = "dropped", "failed"


@dataclass(frozen=True, eq=False)
class ShadowRequest:
    """A request that was let pass, and is to be inspected."""

    guarded: GuardedModel
    decode: Callable[[], Decoded]
    size_bytes: int
    names: Mapping[str, Any]  # of its call, for the log


@dataclass(eq=False)
class ShadowQueue:
    """The requests that wait, in the order in which they came, and the worker that inspects them."""

    records: InferenceRecords
    permits: Permits
    aside: Aside
    waiting: deque[ShadowRequest] = field(default_factory=deque)
    held_bytes: int = 0
    arrival: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, request: ShadowRequest) -> None:
        """Let a request wait for its inspection, or drop it where there is no room."""
        within = self.held_bytes + request.size_bytes <= self.permits.limit_bytes // MEMORY_DIVISOR
        if len(self.waiting) >= MAX_WAITING_MESSAGES or not within or not self.permits.take_spare(request.size_bytes):
            self.count(request, DROPPED)
            return
        self.held_bytes += request.size_bytes
        self.waiting.append(request)
        self.records.metrics.shadow_waiting.set(len(self.waiting))
        self.arrival.set()

    async def run(self) -> None:
        """Inspect what waits, one request after the other, as long as the guard serves."""
        try:
            while True:
                while not self.waiting:
                    self.arrival.clear()
                    await self.arrival.wait()
                request = self.waiting.popleft()
                self.records.metrics.shadow_waiting.set(len(self.waiting))
                try:
                    await self.work_on(request)
                finally:
                    self.give_back(request)
                    del request  # its bundle's memory is free when nothing needs it any more
        finally:
            while self.waiting:
                request = self.waiting.popleft()
                self.count(request, DROPPED)
                self.give_back(request)

    def give_back(self, request: ShadowRequest) -> None:
        self.held_bytes -= request.size_bytes
        self.permits.give_back(request.size_bytes)

    async def work_on(self, request: ShadowRequest) -> None:
        """Inspect a request, and count and log what came of it."""
        try:
            found = await self.inspect(request)
        except (MalformedRequest, Uninspectable, BreakerOpen) as error:
            self.count(request, error.reason.lower())
        except Exception as error:  # noqa: BLE001  ONNX Runtime raises its own untyped family, and no caller waits for it
            self.count(request, FAILED)
            if not isinstance(error, GuardError):
                request.guarded.loaded.breaker.failed()
            self.records.log.warning(
                "shadow failed", **request.names, model=request.guarded.label, cause=str(error) or repr(error)
            )
        else:
            self.note(request, found)

    def note(self, request: ShadowRequest, found: Inspection) -> None:
        """Count and log a verdict."""
        model, readings, records = request.guarded.label, found.readings, self.records
        event = label(found.verdict.request, found.enacted)
        self.count(request, event)
        records.metrics.inspected(model, found.detectors, readings, request.guarded.bundle.calibration.programs)
        if found.verdict.request is not Action.PASS:
            records.log.info(event, **request.names, model=model, **verdict_fields(found), shadow="queue")

    async def inspect(self, request: ShadowRequest) -> Inspection:
        """Inspect a request in slices, each when the device is idle.

        Raises:
            MalformedRequest, Uninspectable, BreakerOpen: as `Inspector.inspect`, and whatever the engine raises.
        """
        guarded = request.guarded
        engine, inspector = guarded.loaded.engine, guarded.inspector
        await engine.thread.until_idle()
        images = (await self.aside(request.size_bytes, request.decode)).images
        inspector.check(len(images))
        most = max(1, int(SLICE_S / engine.item_s)) if engine.item_s else 1
        parts: list[Readings] = []
        for start in range(0, len(images), most):
            await engine.thread.until_idle()
            parts.append(await engine.read(images[start : start + most]))
        guarded.loaded.breaker.succeeded()
        readings = joined(parts)
        if guarded.loaded.drift is not None:
            guarded.loaded.drift.see(images, readings)
        return inspector.judged(readings, images)

    def count(self, request: ShadowRequest, action: str) -> None:
        self.records.metrics.shadow_requests.labels(request.guarded.label, action).inc()
