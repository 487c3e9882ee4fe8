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
from guard.serve.drift_watch import DriftWatch
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


@dataclass(eq=False)
class LoadedBundle:
    """An engine and its batcher, with the use that they were made for."""

    bundle: Bundle
    use: BundleUse
    engine: Engine
    batcher: Batcher
    breaker: Breaker
    metrics: QueueMetrics = field(repr=False)
    admission: Admission = field(default_factory=Admission, repr=False)  # of calls that need this queue
    drift: DriftWatch | None = None  # of the traffic of all models that share the bundle
    watching: asyncio.Task[None] | None = field(default=None, repr=False)

    @staticmethod
    def build(
        bundle: Bundle,
        use: BundleUse,
        config: ServeConfig,
        *,
        label: str,
        metrics: Metrics,
        thread: DeviceThread,
        log: Log,
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
        queue_metrics = QueueMetrics(metrics, label)
        batcher = Batcher(
            engine.read,
            queue_metrics,
            rows_per_item=max(program.rows_at_once for program in bundle.manifest.programs),
            max_rows=use.max_rows,
            max_queue_rows=use.max_queue_rows,
        )
        breaker = Breaker(most_in_a_row=use.breaker_failures, most_share=use.breaker_share)
        drift = None
        if (probability := config.drift_alarm_probability) is not None:
            drift = DriftWatch(bundle, probability=probability, label=label, metrics=metrics.drift, log=log)
        loaded = LoadedBundle(bundle, use, engine, batcher, breaker, queue_metrics, drift=drift)
        told = partial(breaker_changed, breaker, batcher, loaded.admission, label, metrics, log)
        breaker.listeners.append(told)  # not the bundle itself: its memory is free when its last call is over
        return loaded

    def serves(self, use: BundleUse) -> bool:
        """Whether models that use their bundle so can use this one."""
        return self.use == use and use.repairs <= self.use.repairs

    def watch(self, say: Callable[[str | None], None], stalled_s: Callable[[], float]) -> None:
        """Watch the traffic, and keep telling `say` why the engine is not ready (None: it is), until it is closed.

        A batch that takes longer than `stalled_s` means that the device hangs.
        """

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                say(f"nobody watches any more: {task.exception()!r}")

        if self.drift is not None:
            self.drift.begin()
        watching = watch_engine(self.engine, self.batcher, self.breaker, say, stalled_s)
        self.watching = asyncio.create_task(watching)
        self.watching.add_done_callback(ended)

    def retire(self) -> None:
        """Let the calls that use the bundle finish; with the last of them its memory is free."""
        self.watch_no_longer()
        self.breaker.judge(None)  # since nothing would close it any more
        self.batcher.retire()

    async def close(self) -> None:
        """Stop at once: what waits fails as Unchecked."""
        self.watch_no_longer()
        await self.batcher.stop()
        self.engine.close()

    def watch_no_longer(self) -> None:
        """Watch neither the engine nor the traffic any longer."""
        if self.watching is not None:
            self.watching.cancel()
            self.watching = None
        if self.drift is not None:
            self.drift.close()


def breaker_changed(
    breaker: Breaker,
    batcher: Batcher,
    admission: Admission,
    label: str,
    metrics: Metrics,
    log: Log,
    event: BreakerEvent,
) -> None:
    """Tell in metrics and log what a bundle's breaker did; when it opens, what waits is failed.

    How long calls take, which admission goes by, is measured anew.
    """
    fields = {"model": label, "open_s": round(breaker.open_s(), 3), "requests": breaker.stopped}
    if event == "breaker closed":
        log.warning(event, **fields)
        metrics.breaker_open.labels(label).set(0)
        admission.forget()
        return
    log.error(event, **fields, because=breaker.fault)
    if event == "breaker open":
        metrics.breaker_open.labels(label).set(1)
        metrics.breaker_openings.labels(label).inc()
        admission.forget()
        batcher.fail_all(breaker.error)
