"""The composition root: a configuration becomes a guard that listens, watches its upstream, and drains when told to.

    client ── inference listener ─► service ─► inspector (batcher ─► engine, policy) ─► upstream
    operator ── admin listener ─► guard.v1        Prometheus ── metrics listener

Rule 1: the guard never exits because the upstream is absent; as a sidecar it starts first.
Rule 2: it does exit, with one line, if it cannot keep its promise: bad bundle, absent device, taken port, small rate.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry

from guard.answer_evidence import ANSWER, AnswerCalibration
from guard.bundle import Bundle
from guard.calibration import check_promise
from guard.config import ServeConfig
from guard.container import memory_bytes
from guard.errors import ConfigError
from guard.policy import Policy
from guard.serve.agreement import UpstreamComparison
from guard.serve.allocator import few_heaps
from guard.serve.batcher import Batcher
from guard.serve.engine import Engine
from guard.serve.envoy.authorization import HEADERS_BYTES, Authorization, check_settings
from guard.serve.event_loop import EventLoop
from guard.serve.exposition import exposing
from guard.serve.grpc import admin as guard_admin
from guard.serve.grpc.admin import Admin
from guard.serve.grpc.connection_limits import ConnectionLimits
from guard.serve.grpc.door import Door
from guard.serve.grpc.gatekeeper import Wall
from guard.serve.grpc.health import HEALTH, Health
from guard.serve.grpc.listener import Listener, Methods, listening
from guard.serve.grpc.passage import METHODS, Passage
from guard.serve.grpc.reflection import reflecting
from guard.serve.grpc.service import Service
from guard.serve.grpc.upstream import SERVICE, Upstream
from guard.serve.held_answers import held_answers
from guard.serve.inspector import Inspector
from guard.serve.limits import MIN_ANSWER_BYTES, Limits
from guard.serve.line_writer import STANDARD_ERROR_CODE, line_writer
from guard.serve.log import Bridge, Log
from guard.serve.metrics import Metrics
from guard.serve.permits import Permits
from guard.serve.readiness import Readiness
from guard.serve.watching import Pulse, alive, in_background, listener_changed, watch_engine
from guard.session import CudaOptions
from guard.target import split_address

SIDE_DIVISOR = 4  # of the memory for messages, one part in so many is for probes and metadata
SIDE_PATIENCE_S = 0.05


@dataclass(frozen=True)
class Serving:
    """A running guard, and its addresses (with the ports that were bound)."""

    inference: Listener
    admin: Listener
    metrics_address: str
    readiness: Readiness
    drain: Callable[[], Coroutine[Any, Any, None]]  # not ready for a while, still serving; then the listener closes
    authz: Listener | None = None  # of Envoy's checks

    @property
    def address(self) -> str:
        return self.inference.address

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
    bundle, policy, answers = opened(config, log)
    model = bundle.manifest.model
    readiness = told_to(log)
    metrics = build_metrics(config, bundle, policy, readiness, log)
    async with AsyncExitStack() as stack:
        engine = build_engine(config, bundle, metrics)
        stack.callback(engine.close)
        batcher = Batcher(
            engine.read,
            metrics,
            rows_per_item=max(program.rows_at_once for program in bundle.manifest.programs),
            max_rows=config.max_rows,
            max_queue_rows=config.max_queue_rows,
        )
        await stack.enter_async_context(batcher.running())
        limits = stated(Limits.of(config, model.input, batcher, memory_bytes=memory_bytes()), log)
        upstream = await stack.enter_async_context(
            Upstream.open(config, model, max_message_bytes=max(limits.message_bytes, MIN_ANSWER_BYTES))
        )
        pulse = Pulse()
        await stack.enter_async_context(in_background(pulse.beat(), partial(readiness.say, "listener")))
        door, side_door = stack.enter_context(doors(config, limits, log))
        metrics.held_bytes.set_function(lambda: door.permits.taken_bytes + side_door.permits.taken_bytes)
        service = Service(
            config=config,
            model=model,
            inspector=Inspector(
                policy=policy, calibration=bundle.calibration, batcher=batcher, engine=engine, answers=answers
            ),
            upstream=upstream,
            metrics=metrics,
            comparison=UpstreamComparison(
                model=model,
                metrics=metrics,
                readiness=readiness,
                log=log,
                most=config.max_disagreement,
                measured=bundle.manifest.measured_disagreement,
            ),
            door=door,
            log=log,
        )
        passage = Passage(
            config=config,
            guarded=model.name,
            upstream=upstream,
            readiness=readiness,
            metrics=metrics,
            door=door,
            side_door=side_door,
        )
        health = Health(readiness)
        both = health.methods(side_door)
        listen = partial(
            listening,
            max_message_bytes=limits.message_bytes,
            limits=ConnectionLimits.of(config),
        )
        methods = {**passage.methods(), **service.methods(), **both, **reflecting([SERVICE, HEALTH], side_door)}
        inference = await stack.enter_async_context(
            listen(config.listen, methods, passage.closed(None), gates=service.gates())
        )
        methods = {
            **Admin(service, bundle, readiness).methods(side_door),
            **both,
            **reflecting([guard_admin.SERVICE, HEALTH], side_door),
        }
        admin = await stack.enter_async_context(listen(config.admin_listen, methods, passage.closed(None)))
        authz = await stack.enter_async_context(authorizing(config, service, door, both, passage.closed(None)))
        for name, listener in {"inference": inference, "admin": admin, **authz}.items():
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
        log.info(
            "listening",
            inference=inference.address,
            admin=admin.address,
            metrics=metrics_address,
            **{name: listener.address for name, listener in authz.items()},
            upstream=config.upstream,
            mode=policy.mode,
            forward=config.forward,
            max_message_bytes=limits.message_bytes,
            max_bytes_in_flight=limits.in_flight_bytes,
        )
        await loaded(engine, batcher, config, log)
        readiness.say("engine", None)
        for part, watcher in (
            ("upstream", upstream.watch(partial(readiness.say, "upstream"))),
            ("engine", watch_engine(engine, batcher, readiness, stalled_s=config.inspect_timeout_s)),
        ):
            await stack.enter_async_context(in_background(watcher, partial(readiness.say, part)))

        async def drain() -> None:
            readiness.say("drain", "the guard is shutting down")
            await asyncio.sleep(config.drain_s)
            health.close()
            await asyncio.gather(door.empty(config.grace_s), side_door.empty(config.grace_s))
            await inference.stop()

        yield Serving(inference, admin, metrics_address, readiness, drain, authz.get("authz"))


@asynccontextmanager
async def authorizing(
    config: ServeConfig, service: Service, door: Door, beside: Methods, other: Wall
) -> AsyncIterator[dict[str, Listener]]:
    """Answer Envoy's checks within the block, on a listener of their own; there is none unless the settings say where.

    Raises:
        PortError: as `listening`.
    """
    if not config.authz_listen:
        yield {}
        return
    methods = {**Authorization(config, service, door).methods(), **beside}
    largest_bytes, limits = door.largest_bytes + HEADERS_BYTES, ConnectionLimits.of(config)
    async with listening(
        config.authz_listen, methods, other, max_message_bytes=largest_bytes, limits=limits
    ) as listener:
        yield {"authz": listener}


def told_to(log: Log) -> Readiness:
    """A readiness whose changes are written to the log."""
    readiness = Readiness()
    readiness.listeners.append(
        lambda reason: log.info("ready") if reason is None else log.warning("not ready", because=reason)
    )
    return readiness


def build_engine(config: ServeConfig, bundle: Bundle, metrics: Metrics) -> Engine:
    return Engine(
        bundle,
        device=config.device,
        threads=config.threads,
        stage=metrics.stage,
        cuda=CudaOptions(config.device_id, config.device_memory_bytes, config.device_arena),
        only_repairs=() if config.repair is None else (config.repair,),
    )


def stated(limits: Limits, log: Log) -> Limits:
    """Return the limits, with a line in the log where they let little through."""
    if warning := limits.warning:
        log.warning("few messages at once", warning=warning)
    return limits


async def loaded(engine: Engine, batcher: Batcher, config: ServeConfig, log: Log) -> None:
    """Load the programs, with a line in the log where the largest request would take longer than there is time for it.

    Raises:
        BundleError, DeviceError: as `Engine.load`.
    """
    await engine.load(largest=batcher.max_items)
    items, limit_s = batcher.max_queue_items, config.inspect_timeout_s
    if (needed_s := items * engine.item_s) > limit_s:
        most = max(1, int(limit_s / engine.item_s))
        warning = (
            f"a request of {items} items takes about {needed_s:.2g} s to inspect, and inspect_timeout_s = {limit_s:g}; "
            f"raise it, or let clients send at most {most} at once"
        )
        log.warning("slow programs", warning=warning)


@contextmanager
def doors(config: ServeConfig, limits: Limits, log: Log) -> Iterator[tuple[Door, Door]]:
    """Open a door for tensors and one for small messages, a share of the memory each, so that probes find theirs."""
    side_bytes = max(limits.message_bytes, limits.in_flight_bytes // SIDE_DIVISOR)
    main = Permits(limits.in_flight_bytes - side_bytes, largest_bytes=limits.message_bytes)
    side = Permits(side_bytes, largest_bytes=limits.message_bytes, patience_s=SIDE_PATIENCE_S)
    made = partial(
        Door,
        largest_bytes=limits.message_bytes,
        read_timeout_s=config.read_timeout_s,
        log=log,
    )
    door, side_door = made(main), made(side)
    try:
        yield door, side_door
    finally:
        door.close()
        side_door.close()


def opened(config: ServeConfig, log: Log) -> tuple[Bundle, Policy, AnswerCalibration | None]:
    """Open the bundle, verified, the policy that it can promise, and what it knows of answers. Raises UserError."""
    for name in ("bundle", "upstream"):
        if not getattr(config, name):
            raise ConfigError(f"{name} is not set; `guard serve --bundle DIRECTORY --upstream HOST:PORT`")
    check_loopback(config.admin_listen)
    if config.authz_listen:
        check_settings(config)
    bundle = Bundle.open(config.bundle)
    policy = config.policy(reject_rate=bundle.manifest.reject_rate, flag_rate=bundle.manifest.flag_rate)
    for name in ("reject_rate", "flag_rate"):
        if warning := check_promise(getattr(policy, name), bundle.calibration.items, name=name):
            log.warning("thin promise", warning=warning)
    if policy.repair is not None:
        bundle.repair(policy.repair)
    return bundle, policy, held_answers(config, bundle)


def check_loopback(address: str) -> None:
    """Raise ConfigError unless the address is loopback: the admin listener tells p-values without authentication."""
    host = (split_address(address) or ("", 0))[0].strip("[]")
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise ConfigError(
            f"admin_listen = {address!r} is not loopback; it tells p-values to whoever asks, so use 127.0.0.1:PORT"
        )


def build_metrics(config: ServeConfig, bundle: Bundle, policy: Policy, readiness: Readiness, log: Log) -> Metrics:
    model = bundle.manifest.model
    metrics = Metrics(
        CollectorRegistry(),
        guarded=model.name,
        models=(model.name, *config.allow_models),
        detectors=(*bundle.calibration.detectors, *((ANSWER,) if config.forward == "before" else ())),
        methods=METHODS,
    )
    metrics.bundle_info.labels(bundle.digest[:16], model.name, model.version, model.fingerprint[:16]).set(1)
    metrics.promised_rate.labels("reject").set(policy.reject_rate)
    metrics.promised_rate.labels("flag").set(policy.flag_rate)
    metrics.measured_disagreement.set(bundle.manifest.measured_disagreement)
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
