"""Watchers beside the listeners: each keeps one part of the guard's readiness or liveness true, for as long as it runs.

Rule 1: a watcher that ends by itself is reported; nothing stays "ready" because its watcher is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from guard.errors import first_line
from guard.serve.batcher import Batcher
from guard.serve.breaker import Breaker
from guard.serve.engine import Engine
from guard.serve.log import Log
from guard.serve.metrics import Metrics
from guard.serve.readiness import Readiness

ENGINE_POLL_S = 0.25
PULSE_S = 0.5
CATCH_UP_S = 1.0
HUNG_LOOP_S = 10.0


class Pulse:
    """The time at which the event loop last turned, which another thread reads."""

    def __init__(self) -> None:
        self.last_beat = time.monotonic()

    async def beat(self) -> None:
        while True:
            self.last_beat = time.monotonic()
            await asyncio.sleep(PULSE_S)

    def missed_s(self) -> float:
        return time.monotonic() - self.last_beat - PULSE_S


def alive(pulse: Pulse, readiness: Readiness) -> str | None:
    """The reason why the guard is not live; None when it is."""
    if (missed_s := pulse.missed_s()) > HUNG_LOOP_S:
        return f"the event loop has not turned for {missed_s:.0f} s"
    return readiness.part("listener")


def listener_changed(name: str, readiness: Readiness, metrics: Metrics, reason: str | None) -> None:
    readiness.say("listener", reason)
    if reason is None:
        metrics.reopened.labels(name).inc()


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None], failed: Callable[[str], None]) -> AsyncIterator[None]:
    """Run `work` within the block; should it ever end by itself, `failed` is called."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            failed(f"nobody watches any more: {task.exception()!r}")

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def catching_up(log: Log, failed: Callable[[str], None]) -> AsyncIterator[None]:
    """Tell of lines that were held back within the block, soon after the last of them, and of the rest at its end."""

    async def catch_up() -> None:
        while True:
            await asyncio.sleep(CATCH_UP_S)
            log.catch_up(time.monotonic())

    async with in_background(catch_up(), failed):
        try:
            yield
        finally:
            log.catch_up()


async def watch_engine(
    engine: Engine,
    batcher: Batcher,
    breaker: Breaker,
    say: Callable[[str | None], None],
    stalled_s: Callable[[], float],
) -> None:
    """Keep telling why an engine is not ready: after a failed batch the self-check decides; hung is not ready.

    The breaker hears the same, and follows where inspections keep failing.
    """
    seen, reason = 0, None
    while True:
        if batcher.busy_s() > stalled_s():
            reason = f"the device has not answered for {stalled_s():g} s"
        elif batcher.failures != seen or reason is not None or breaker.is_suspect:
            seen = batcher.failures
            try:
                async with asyncio.timeout(stalled_s()):
                    await engine.check()
            except Exception as error:  # noqa: BLE001  ONNX Runtime raises its own untyped family
                reason = f"the self-check failed after a failed batch: {first_line(error)}"
            else:
                reason = None
        breaker.judge(reason)
        say(reason)
        await asyncio.sleep(ENGINE_POLL_S)
