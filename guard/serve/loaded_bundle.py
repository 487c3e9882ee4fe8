"""A bundle at work: its engine and the queue in front of it, which all models share that this bundle guards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from guard.bundle import Bundle
from guard.config import ServeConfig
from guard.serve.admission import Admission
from guard.serve.batcher import Batcher
from guard.serve.breaker import Breaker, BreakerEvent
from guard.serve.device_thread import DeviceThread
from guard.serve.engine import Engine
from guard.serve.log import Log
from guard.serve.metrics import Metrics, QueueMetrics
from guard.serve.watching import watch_engine
from guard.session import CudaOptions


@dataclass(frozen=True)
class BundleUse:
    """The way in which models use a bundle: those that agree in it share one engine and one queue."""

    digest: str
    max_rows: int
    max_queue_rows: int
    breaker_failures: int | None = None
    breaker_share: float = 1.0
    repairs: frozenset[str] = field(compare=False, default=frozenset())  # of all of these models
    stalled_s: float = field(compare=False, default=5.0)  # after which an undone batch means that the device hangs


@dataclass(eq=False)
class LoadedBundle:
    """An engine and its batcher, with the use that they were made for."""

    bundle: Bundle
    use: BundleUse
    engine: Engine
    batcher: Batcher
    breaker: Breaker
    admission: Admission = field(default_factory=Admission, repr=False)  # of calls that need this queue
    watching: asyncio.Task[None] | None = field(default=None, repr=False)

    @staticmethod
    def build(
        bundle: Bundle,
        use: BundleUse,
        config: ServeConfig,
        *,
        label: str,
        metrics: Metrics,
        log: Log,
        thread: DeviceThread,
    ) -> LoadedBundle:
        """Build the parts; the engine is loaded later, with `engine.load`."""
        engine = Engine(
            bundle,
            device=config.device,
            threads=config.threads,
            stage=metrics.stage,
            cuda=CudaOptions(config.device_id, config.device_memory_bytes, config.device_arena),
            only_repairs=use.repairs,
            thread=thread,
        )
        batcher = Batcher(
            engine.read,
            QueueMetrics(metrics, label),
            rows_per_item=max(program.rows_at_once for program in bundle.manifest.programs),
            max_rows=use.max_rows,
            max_queue_rows=use.max_queue_rows,
        )
        breaker = Breaker(most_in_a_row=use.breaker_failures, most_share=use.breaker_share)
        loaded = LoadedBundle(bundle, use, engine, batcher, breaker)
        breaker.listeners.append(partial(breaker_changed, breaker, loaded, label, metrics, log))
        metrics.breaker_open.labels(label).set(0)
        metrics.breaker_openings.labels(label)
        return loaded

    def serves(self, use: BundleUse) -> bool:
        """Whether models that use their bundle so can use this one."""
        return self.use == use and use.repairs <= self.use.repairs

    def watch(self, say: Callable[[str | None], None]) -> None:
        """Keep telling `say` why the engine is not ready (None: it is), until the bundle is retired or closed."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                say(f"nobody watches any more: {task.exception()!r}")

        self.watching = asyncio.create_task(
            watch_engine(self.engine, self.batcher, self.breaker, say, lambda: self.use.stalled_s)
        )
        self.watching.add_done_callback(ended)

    def retire(self) -> None:
        """Let the calls that use the bundle finish; with the last of them its memory is free."""
        if self.watching is not None:
            self.watching.cancel()
        self.batcher.retire()

    async def close(self) -> None:
        """Stop at once: what waits fails as Unchecked."""
        if self.watching is not None:
            self.watching.cancel()
        await self.batcher.stop()
        self.engine.close()


def breaker_changed(
    breaker: Breaker, loaded: LoadedBundle, label: str, metrics: Metrics, log: Log, event: BreakerEvent
) -> None:
    """Tell in metrics and log what a bundle's breaker did; when it opens, what waits is failed.

    How long calls take, which admission goes by, is measured anew.
    """
    fields = {"model": label, "open_s": round(breaker.open_s(), 3), "requests": breaker.stopped}
    if event == "breaker closed":
        log.warning(event, **fields)
        metrics.breaker_open.labels(label).set(0)
        loaded.admission.forget()
        return
    log.error(event, **fields, because=breaker.fault)
    if event == "breaker open":
        metrics.breaker_open.labels(label).set(1)
        metrics.breaker_openings.labels(label).inc()
        loaded.admission.forget()
        loaded.batcher.fail_all(breaker.error)
