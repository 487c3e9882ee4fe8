"""The composition root: a configuration becomes a guard that listens, watches its upstream, and drains when told to.

    client ── inference listener ─► service ─► inspector (batcher ─► engine, policy) ─► upstream
    operator ── admin listener ─► guard.v1        Prometheus ── metrics listener

Rule 1: the guard never exits because the upstream is absent; as a sidecar it starts first.
Rule 2: it does exit, with one line, if it cannot keep its promise: bad bundle, absent device, taken port, small rate.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from guard.config import ServeConfig, SettingsSource
from guard.container import memory_bytes
from guard.serve.allocator import few_heaps
from guard.serve.audit.audit import auditing
from guard.serve.check_settings import check_complete
from guard.serve.device_thread import DeviceThread
from guard.serve.draining import Drain, Entrance
from guard.serve.event_loop import EventLoop
from guard.serve.exposition import exposing
from guard.serve.further_doors import authorizing, serving_rest
from guard.serve.grpc import admin as guard_admin
from guard.serve.grpc.absent_upstream import AbsentUpstream, AbsentWatch
from guard.serve.grpc.admin import Admin
from guard.serve.grpc.connection_limits import ConnectionLimits
from guard.serve.grpc.door import Door
from guard.serve.grpc.health import HEALTH, Health
from guard.serve.grpc.identification import identifying
from guard.serve.grpc.listener import Listener, listening
from guard.serve.grpc.passage import METHODS, Passage
from guard.serve.grpc.reflection import reflecting
from guard.serve.grpc.service import Service
from guard.serve.grpc.streams import Streams
from guard.serve.grpc.upstream import SERVICE, Upstream
from guard.serve.grpc.upstream_channel import UpstreamChannel
from guard.serve.grpc.upstream_watch import UpstreamWatch
from guard.serve.inference import Inference
from guard.serve.inference_records import InferenceRecords
from guard.serve.limits import MIN_ANSWER_BYTES, Limits
from guard.serve.line_writer import STANDARD_ERROR_CODE, line_writer
from guard.serve.log import Bridge, Log
from guard.serve.metrics import Metrics
from guard.serve.models import Models
from guard.serve.open_models import Workshop, at_work
from guard.serve.permits import Permits
from guard.serve.readiness import Readiness
from guard.serve.reload import Reloader
from guard.serve.security import Security, following
from guard.serve.shadow_queue import ShadowQueue
from guard.serve.tracing import service_name, tracing
from guard.serve.watch_files import FileWatch, Watched
from guard.serve.watching import Pulse, alive, catching_up, in_background, listener_changed

SIDE_DIVISOR = 4  # of the memory for messages, one part in so many is for probes and metadata
SIDE_PATIENCE_S = 0.05


@dataclass(frozen=True)
class Serving:
    """A running guard, and its addresses (with the ports that were bound)."""

    inference: Listener
    admin: Listener
    metrics_address: str
    readiness: Readiness
    models: Models
    reloader: Reloader
    upstream_channels: UpstreamChannel
    drain: Callable[[], Coroutine[Any, Any, None]]  # not ready for a while, still serving; then the listener closes
    authz: Listener | None = None  # of Envoy's checks
    rest: Entrance | None = None

    @property
    def address(self) -> str:
        return self.inference.address

    @property
    def rest_address(self) -> str | None:
        return None if self.rest is None else self.rest.address

    @property
    def admin_address(self) -> str:
        return self.admin.address


def serve(config: ServeConfig, source: SettingsSource | None = None) -> None:
    """Run the guard until SIGTERM or SIGINT, then drain; at SIGHUP, read its settings from their source again.

    Raises:
        UserError: the guard cannot start (ConfigError, BundleError, DeviceError, PromiseError, PortError).
    """
    few_heaps()
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(serve_until_signal(config, source))


async def serve_until_signal(config: ServeConfig, source: SettingsSource | None) -> None:
    service = service_name(os.environ)
    with line_writer(STANDARD_ERROR_CODE) as stream, bridged(log := Log(config.log_level, stream, service=service)):
        stop, reread = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reread.set)  # before all else: unhandled, it ends the process
        async with (
            running(config, log=log, source=source) as serving,
            in_background(reload_at(reread, serving.reloader), partial(serving.readiness.say, "listener")),
        ):
            gc.freeze()  # what is here now stays: the garbage collector need not look at it again
            await stop.wait()
            stop.clear()
            draining = asyncio.create_task(serving.drain())
            again = asyncio.create_task(stop.wait())  # a second signal: leave at once
            await asyncio.wait([draining, again], return_when=asyncio.FIRST_COMPLETED)
            for task in (draining, again):
                task.cancel()
            await asyncio.gather(draining, again, return_exceptions=True)
        log.info("stopped")


@asynccontextmanager
async def running(config: ServeConfig, *, log: Log, source: SettingsSource | None = None) -> AsyncIterator[Serving]:
    """Run a guard within the block; it becomes ready when its programs are checked and the upstream is there.

    Settings are read again from `source`; without one they stay, and only what bundles hold can change.

    Raises:
        UserError: as `serve`.
    """
    check_complete(config)
    security = Security.open(config)
    readiness = told_to(log)
    metrics = build_metrics(readiness, log)
    async with AsyncExitStack() as stack:
        thread = stack.enter_context(closing(DeviceThread()))
        workshop = Workshop(metrics=metrics, readiness=readiness, log=log, thread=thread)
        models = await stack.enter_async_context(at_work(config, security.trust, workshop))
        limits = stated(Limits.of(config, models.table.inputs, memory_bytes=memory_bytes()), log)
        upstream = await stack.enter_async_context(reaching(config, limits, security))
        pulse = Pulse()
        await stack.enter_async_context(in_background(pulse.beat(), partial(readiness.say, "listener")))
        door, side_door, operators_door = stack.enter_context(doors(config, limits, security, log))
        metrics.held_bytes.set_function(lambda: door.permits.taken_bytes + side_door.permits.taken_bytes)
        records = InferenceRecords(metrics, log, stack.enter_context(auditing(config, metrics.audit)))
        await stack.enter_async_context(catching_up(log, partial(readiness.say, "listener")))
        inference = await stack.enter_async_context(inferring(models, records, door))
        service = Service(inference=inference, upstream=upstream, door=door)
        passage = Passage(
            config=config,
            models=models,
            upstream=upstream,
            readiness=readiness,
            metrics=metrics,
            door=door,
            side_door=side_door,
        )
        reloader = Reloader(
            config,
            source.load if source is not None else lambda: config,
            models=models,
            workshop=workshop,
            watches=[watch := (UpstreamWatch if config.upstream else AbsentWatch)(upstream, models, readiness)],
            limits=limits,
        )
        both = (health := Health(readiness)).methods(side_door)
        listen = partial(
            listening,
            max_message_bytes=limits.message_bytes,
            limits=ConnectionLimits.of(config),
        )
        methods = {
            **Streams(service.inference, upstream, door, config.stream_replies).methods(),
            **passage.methods(),
            **service.methods(),
            **both,
            **reflecting([SERVICE, HEALTH], side_door),
        }
        clients = await stack.enter_async_context(
            listen(
                config.listen,
                methods,
                passage.closed(None),
                gates=service.gates(),
                credentials=security.credentials,
            )
        )
        authz = await stack.enter_async_context(
            authorizing(config, service, door, both, passage.closed(None), security)
        )
        rest = await stack.enter_async_context(
            serving_rest(config, inference, readiness, door, side_door, security, upstream, reloader.watches)
        )
        draining = Drain(
            (clients, *authz.values(), *rest.values()),
            (door, side_door),
            readiness,
            log,
            drain_s=config.drain_s,
            grace_s=config.grace_s,
            max_age_s=config.max_connection_age_s,
            closing=health.close,
        )
        stack.push_async_callback(draining.stop)
        methods = {
            **Admin(service, readiness, reloader, draining).methods(operators_door),
            **both,
            **reflecting([guard_admin.SERVICE, HEALTH], operators_door),
        }
        admin = await stack.enter_async_context(
            listen(
                config.admin_listen,
                methods,
                passage.closed(None),
                credentials=security.credentials_at(config.admin_listen),
            )
        )
        for name, listener in {"inference": clients, "admin": admin, **authz}.items():
            listener.changed = partial(listener_changed, name, readiness, metrics)
        metrics_address = stack.enter_context(
            exposing(
                config.metrics_listen,
                metrics.registry,
                live=partial(alive, pulse, readiness),
                ready=lambda: readiness.because,
            )
        )
        stack.callback(health.close)
        await stack.enter_async_context(following(security, log, metrics.registry, upstream.channels.renew))
        log.info(
            "listening",
            inference=clients.address,
            admin=admin.address,
            metrics=metrics_address,
            **{name: listener.address for name, listener in authz.items()},
            **{name: listener.address for name, listener in rest.items()},
            upstream=config.upstream,
            mode=models.table.strictest_mode,
            tls=security.listener is not None,
            principal_from=config.principal_from,
            models=models.table.labels,
            max_message_bytes=limits.message_bytes,
            max_bytes_in_flight=limits.in_flight_bytes,
        )
        await reloader.begin()
        await stack.enter_async_context(in_background(watch.run(), partial(readiness.say, "upstream")))
        await stack.enter_async_context(watching_files(reloader, source, log))
        yield Serving(
            clients,
            admin,
            metrics_address,
            readiness,
            models,
            reloader,
            upstream.channels,
            draining.finish,
            authz.get("authz"),
            rest.get("rest"),
        )


@asynccontextmanager
async def watching_files(reloader: Reloader, source: SettingsSource | None, log: Log) -> AsyncIterator[None]:
    """Reload within the block whenever the settings' file or a bundle has changed, unless the settings forbid it."""
    if not reloader.config.watch_files:
        yield
        return

    def watched() -> Watched:
        bundles = dict.fromkeys(Path(model.bundle) for model in reloader.config.model_configs())
        return Watched(source.file if source is not None else None, tuple(bundles))

    watch = FileWatch(watched, reloader.reload, reloader.workshop.thread.open, log)

    def ended(reason: str) -> None:
        log.error("files are not watched any more", because=reason)

    async with in_background(watch.run(), ended):
        yield


async def reload_at(signalled: asyncio.Event, reloader: Reloader) -> None:
    """Reload at each signal; a fault is logged and counted where it happened."""
    while True:
        await signalled.wait()
        signalled.clear()
        with suppress(Exception):
            await reloader.reload("SIGHUP")


@asynccontextmanager
async def inferring(models: Models, records: InferenceRecords, door: Door) -> AsyncIterator[Inference]:
    """Build what all doors do with a request; within the block requests are traced, and shadowed ones inspected."""
    shadow = ShadowQueue(records, door.permits, door.aside)
    async with tracing(records.log) as traced, in_background(shadow.run(), partial(models.readiness.say, "engine")):
        yield Inference(models=models, records=records, aside=door.aside, shadow=shadow, tracing=traced)


def told_to(log: Log) -> Readiness:
    """A readiness whose changes are written to the log."""
    readiness = Readiness()
    readiness.listeners.append(
        lambda reason: log.info("ready") if reason is None else log.warning("not ready", because=reason)
    )
    return readiness


def stated(limits: Limits, log: Log) -> Limits:
    """Return the limits, with a line in the log where they let little through."""
    if warning := limits.warning:
        log.warning("few messages at once", warning=warning)
    return limits


@asynccontextmanager
async def reaching(config: ServeConfig, limits: Limits, security: Security) -> AsyncIterator[Upstream]:
    """Open the way to the model server over gRPC; there is none where the settings name its HTTP address alone."""
    if not config.upstream:
        yield AbsentUpstream()
        return
    largest_bytes = max(limits.message_bytes, MIN_ANSWER_BYTES)
    async with Upstream.open(config, max_message_bytes=largest_bytes, identity=security.upstream_now) as upstream:
        yield upstream


@contextmanager
def doors(config: ServeConfig, limits: Limits, security: Security, log: Log) -> Iterator[tuple[Door, Door, Door]]:
    """Open a door for tensors and one for small messages, a share of the memory each, so that probes find theirs.

    The third, for operators, shares the memory of the second and has its own way to tell who calls.
    """
    side_bytes = max(limits.message_bytes, limits.in_flight_bytes // SIDE_DIVISOR)
    main = Permits(limits.in_flight_bytes - side_bytes, largest_bytes=limits.message_bytes)
    side = Permits(side_bytes, largest_bytes=limits.message_bytes, patience_s=SIDE_PATIENCE_S)
    made = partial(
        Door,
        largest_bytes=limits.message_bytes,
        read_timeout_s=config.read_timeout_s,
        log=log,
    )
    clients, operators = identifying(security.principals), identifying(security.operators)
    found = made(main, identify=clients), made(side, identify=clients), made(side, identify=operators)
    try:
        yield found
    finally:
        for door in found:
            door.close()


def build_metrics(readiness: Readiness, log: Log) -> Metrics:
    metrics = Metrics(CollectorRegistry(), methods=METHODS)
    metrics.ready.set_function(lambda: float(readiness.because is None))
    metrics.upstream_ready.set_function(lambda: float(readiness.part("upstream") is None))
    log.lost = metrics.lost_lines.inc
    return metrics


@contextmanager
def bridged(log: Log) -> Iterator[None]:
    """Write libraries' log records as JSON lines within the block."""
    root, bridge = logging.getLogger(), Bridge(log)
    root.addHandler(bridge)
    try:
        yield
    finally:
        root.removeHandler(bridge)
