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
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry

from guard.config import ServeConfig
from guard.container import memory_bytes
from guard.errors import ConfigError
from guard.serve.admin_access import check_admin
from guard.serve.allocator import few_heaps
from guard.serve.device_thread import DeviceThread
from guard.serve.draining import Drain, Entrance
from guard.serve.envoy.authorization import check_settings
from guard.serve.event_loop import EventLoop
from guard.serve.exposition import exposing
from guard.serve.further_doors import authorizing, serving_rest
from guard.serve.grpc import admin as guard_admin
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
from guard.serve.model_metrics import show_models
from guard.serve.models import Models
from guard.serve.open_models import OpenedModel, Workshop, open_models
from guard.serve.permits import Permits
from guard.serve.readiness import Readiness
from guard.serve.security import Security, following
from guard.serve.shadow_queue import ShadowQueue
from guard.serve.watching import Pulse, alive, in_background, listener_changed

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


def serve(config: ServeConfig) -> None:
    """Run the guard until SIGTERM or SIGINT, then drain.

    Raises:
        UserError: the guard cannot start (ConfigError, BundleError, DeviceError, PromiseError, PortError).
    """
    few_heaps()
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(serve_until_signal(config))


async def serve_until_signal(config: ServeConfig) -> None:
    with line_writer(STANDARD_ERROR_CODE) as stream, bridged(log := Log(config.log_level, stream)):
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        async with running(config, log=log) as serving:
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
async def running(config: ServeConfig, *, log: Log) -> AsyncIterator[Serving]:
    """Run a guard within the block; it becomes ready when its programs are checked and the upstream is there.

    Raises:
        UserError: as `serve`.
    """
    security, opened = prepared(config)
    readiness = told_to(log)
    metrics = build_metrics(readiness, log)
    async with AsyncExitStack() as stack:
        thread = stack.enter_context(closing(DeviceThread()))
        workshop = Workshop(metrics=metrics, readiness=readiness, log=log, thread=thread)
        models = await stack.enter_async_context(at_work(config, opened, workshop))
        limits = stated(Limits.of(config, models.table.inputs, memory_bytes=memory_bytes()), log)
        upstream = await stack.enter_async_context(
            Upstream.open(
                config,
                max_message_bytes=max(limits.message_bytes, MIN_ANSWER_BYTES),
                identity=security.upstream_now,
            )
        )
        pulse = Pulse()
        await stack.enter_async_context(in_background(pulse.beat(), partial(readiness.say, "listener")))
        door, side_door, operators_door = stack.enter_context(doors(config, limits, security, log))
        metrics.held_bytes.set_function(lambda: door.permits.taken_bytes + side_door.permits.taken_bytes)
        records = InferenceRecords(metrics, log)
        shadow = ShadowQueue(records, door.permits, door.aside)
        await stack.enter_async_context(in_background(shadow.run(), partial(readiness.say, "engine")))
        inference = Inference(models=models, records=records, aside=door.aside, shadow=shadow)
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
        rest = await stack.enter_async_context(serving_rest(config, inference, readiness, door, side_door, security))
        draining = Drain(
            (clients, *authz.values(), *rest.values()),
            (door, side_door),
            readiness,
            log,
            drain_s=config.drain_s,
            grace_s=config.grace_s,
            closing=health.close,
        )
        stack.push_async_callback(draining.stop)
        methods = {
            **Admin(service, readiness, draining).methods(operators_door),
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
        await workshop.load(models.table)
        models.begin()
        watch = UpstreamWatch(upstream, models, readiness)
        await stack.enter_async_context(in_background(watch.run(), partial(readiness.say, "upstream")))
        yield Serving(
            clients,
            admin,
            metrics_address,
            readiness,
            models,
            upstream.channels,
            draining.finish,
            authz.get("authz"),
            rest.get("rest"),
        )


def told_to(log: Log) -> Readiness:
    """A readiness whose changes are written to the log."""
    readiness = Readiness()
    readiness.listeners.append(
        lambda reason: log.info("ready") if reason is None else log.warning("not ready", because=reason)
    )
    return readiness


@asynccontextmanager
async def at_work(config: ServeConfig, opened: Sequence[OpenedModel], workshop: Workshop) -> AsyncIterator[Models]:
    """Put models to work within the block, their programs not loaded yet; then those that are at work by then stop."""
    table = workshop.table(opened, workshop.loaded_bundles(opened, config), config)
    models = Models(table, workshop.readiness)
    show_models(workshop.metrics, None, table)
    told(opened, workshop.log)
    for loaded in table.loaded:
        loaded.batcher.start()
    try:
        yield models
    finally:
        await models.close()


def told(opened: Sequence[OpenedModel], log: Log) -> None:
    """Write into the log which models are guarded, and how, and what their settings make risky."""
    for model in opened:
        settings = {name: getattr(model.config, name) for name in ("mode", "on_failure", "forward")}
        signed_by = None if model.signer is None else model.signer.id
        log.info(
            "guarding",
            model=model.label,
            bundle=model.config.bundle,
            digest=model.bundle.digest,
            signed_by=signed_by,
            **settings,
        )
        if model.bundle.beside:
            log.info("beside the bundle", model=model.label, ignored=model.bundle.beside)
        if model.unsigned:
            log.warning("bundle not signed", model=model.label, warning="require_signature = false lets it be used")
        for warning in model.warnings:
            log.warning("thin promise", model=model.label, warning=warning)


def stated(limits: Limits, log: Log) -> Limits:
    """Return the limits, with a line in the log where they let little through."""
    if warning := limits.warning:
        log.warning("few messages at once", warning=warning)
    return limits


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


def prepared(config: ServeConfig) -> tuple[Security, tuple[OpenedModel, ...]]:
    """Read all that the settings name: certificates, tokens, keys, and the bundles, verified. Raises UserError."""
    check_complete(config)
    security = Security.open(config)
    return security, open_models(config, security.trust)


def check_complete(config: ServeConfig) -> None:
    """Raise ConfigError where a setting is missing, or tells strangers too much."""
    for name in ("bundle", "upstream"):
        if not getattr(config, name) and not (name == "bundle" and config.models):
            raise ConfigError(f"{name} is not set; `guard serve --bundle DIRECTORY --upstream HOST:PORT`")
    check_admin(config)
    for name, other in (("rest_listen", "rest_upstream"), ("rest_upstream", "rest_listen")):
        if getattr(config, name) and not getattr(config, other):
            raise ConfigError(
                f"{name} = {getattr(config, name)!r}, and {other} is not set; the REST door needs both: where clients "
                "call (HOST:PORT), and the model server behind it (http://HOST:PORT)"
            )
    if config.authz_listen:
        check_settings(config)


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
