"""Checks of the model server: whether it answers, has the models as their bundles expect them, and names their classes.

Rule 1: what is sent reads, or infers one of a bundle's own samples; nothing that changes a server.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import grpc
import grpc.aio
import numpy as np

from guard.bundle import Bundle
from guard.config import ServeConfig
from guard.errors import GuardError, UpstreamDown
from guard.manifest import ModelSpec
from guard.serve.doctor.listeners import spoken_at
from guard.serve.doctor.machine import resolved
from guard.serve.doctor.remark import Remark
from guard.serve.doctor.settings_checks import is_installed
from guard.serve.doctor.setup import Setup
from guard.serve.grpc.answer import predicted
from guard.serve.grpc.decode import encode
from guard.serve.grpc.upstream import Upstream, path
from guard.serve.grpc.upstream_watch import UpstreamWatch
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from guard.serve.identities import upstream_identity
from guard.serve.limits import MIN_ANSWER_BYTES
from guard.serve.models import Models, ModelTable
from guard.serve.own_ports import addresses
from guard.serve.readiness import Readiness
from guard.target import hosts_and_ports, split_address

MAX_ASKED_ITEMS = 16  # samples of a bundle that are sent to the model server, one by one
EXPECTED_SHARE = 0.02  # of samples on which rounding alone may name another class
SURPRISING_SHARE = 0.001  # the probability of so many differences, below which the model is another
MESSAGE_ID = "guard-doctor"


def upstream(setup: Setup) -> Iterator[Remark]:
    """Whether the model server answers by gRPC, is ready, and has each guarded model as its bundle expects it."""
    config = setup.given.config
    if not config.upstream:
        return
    if (own := own_listener(config)) is not None:
        said = f"upstream = {config.upstream!r} is the guard's own {own}; name the model server's address"
        yield Remark("upstream", "wrong", said)
        return
    try:
        yield from asyncio.run(asked(setup))
    except GuardError as error:
        yield Remark("upstream", "wrong", str(error))


def own_listener(config: ServeConfig) -> str | None:
    """The listener of the guard that its upstream leads to; None where it leads elsewhere."""
    for host, port in hosts_and_ports(config.upstream):
        for name, address in addresses(config):
            own_host, own_port = split_address(address) or ("", 0)
            if port and port == own_port and host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", own_host):
                return f"{name} = {address!r}"
    return None


async def asked(setup: Setup) -> list[Remark]:
    """Ask the server for itself and for each model."""
    found: list[Remark] = []
    async with watching(setup) as watch:
        reason = await watch.server_reason()
        if reason is not None:
            cure = await asyncio.to_thread(cause_of, setup) or "start it, or name its address"
            return [Remark("upstream", "wrong", f"{reason}; {cure}" if ";" not in reason else reason)]
        found.append(Remark("upstream", "ok", f"the model server at {watch.upstream.address} is ready"))
        for named in setup.bundles:
            spec = named.spec
            if spec is None or named.bundle is None:
                continue
            fault = await watch.model_reason(spec)
            if fault is not None:
                said = str(fault)
                found.append(Remark("model", "wrong", said if ";" in said else f"{said}; {MODEL_CURE}"))
                continue
            versions = watch.models.versions.get(spec.name, ())
            served = f", versions {', '.join(versions)}" if versions else ""
            said = f"{spec.name!r} is served as the bundle expects it: names, shapes and datatypes{served}"
            found.append(Remark("model", "ok", said))
            found.append(await same_classes(watch.upstream, named.bundle, spec))
    return found


def cause_of(setup: Setup) -> str | None:
    """Why a model server may give no answer of gRPC, by what listens at its address; None where that tells nothing."""
    config = setup.given.config
    for host, port in hosts_and_ports(config.upstream):
        if not resolved(host):
            return f"the name {host} leads to no address: is it spelled so, and does this container ask the right DNS?"
        found = spoken_at(host.strip("[]"), port, setup.timeout_s)
        if found == "nothing":
            return f"nothing listens on {host}:{port}: start it, or name its address"
        if found == "TLS" and not config.upstream_tls:
            return f"{host}:{port} speaks TLS: set upstream_tls = true, and upstream_ca"
        if found == "HTTP/1":
            return f"{host}:{port} speaks HTTP/1: name the server's port of gRPC"
    return None


MODEL_CURE = "load it, or name the model that is there: --serves NAME:VERSION in training, or a table [models.NAME]"


@asynccontextmanager
async def watching(setup: Setup) -> AsyncIterator[UpstreamWatch]:
    """A watch over the model server, by the settings' certificates, that is asked and not run. Raises GuardError."""
    config = setup.given.config
    identity = upstream_identity(config)
    async with Upstream.open(
        config,
        max_message_bytes=MIN_ANSWER_BYTES,
        identity=lambda: None if identity is None else identity.value,
    ) as opened:
        opened.timeout_s = min(config.upstream_timeout_s, setup.timeout_s)
        readiness = Readiness()
        yield UpstreamWatch(opened, Models(ModelTable(()), readiness), readiness)


async def same_classes(upstream: Upstream, bundle: Bundle, spec: ModelSpec) -> Remark:
    """Whether the model server names the classes for a bundle's own samples that the bundle does."""
    samples, allowed = bundle.samples, max(EXPECTED_SHARE, bundle.manifest.measured_disagreement)
    chosen = np.argsort(-samples.p_values, kind="stable")[:MAX_ASKED_ITEMS]
    own = samples.logits[chosen].argmax(axis=1)
    different = shown = 0
    for index, label in zip(chosen, own, strict=True):
        images = samples.images[int(index)][None]
        message = ModelInferRequest(model_name=spec.name, model_version=spec.version, id=MESSAGE_ID)
        message.inputs.add(name=spec.input.name, datatype=spec.input.datatype, shape=images.shape)
        body = encode(message, images, spec.input, "raw")
        try:
            answer = await upstream.unary(path("ModelInfer"), body, (), upstream.timeout_s)
        except grpc.aio.AioRpcError as error:
            said = f"{spec.name!r} answers a sample of its bundle: {error.code().name}, {error.details()}"
            return Remark("answers", "wrong", f"{said}; does it take a batch of one?")
        except UpstreamDown as error:
            return Remark("answers", "wrong", f"{spec.name!r}: {error}; did it crash on a sample of its bundle?")
        theirs = predicted(answer.body, spec.output, 1)
        if theirs is not None:
            shown += 1
            different += int(theirs[0] != label)
    return judged(spec, different, shown, allowed)


def judged(spec: ModelSpec, different: int, shown: int, allowed: float) -> Remark:
    """The remark about samples on which model server and bundle name different classes."""
    if not shown:
        said = f"{spec.name!r} shows no class in output {spec.output.name!r}; whether the bundle is for it is not known"
        return Remark("answers", "unknown", said)
    if not different:
        return Remark("answers", "ok", f"{spec.name!r} names the bundle's class for all {shown} samples of it")
    said = f"{spec.name!r} names another class than the bundle for {different} of {shown} of its samples"
    if at_least(different, shown, allowed) < SURPRISING_SHARE:
        return Remark("answers", "wrong", f"{said}: it was made for another model; train one for this")
    return Remark("answers", "warn", f"{said}; watch guard_upstream_disagreement_ratio")


def at_least(successes: int, trials: int, share: float) -> float:
    """The probability of so many successes or more."""
    return sum(math.comb(trials, i) * share**i * (1 - share) ** (trials - i) for i in range(successes, trials + 1))


def rest_upstream(setup: Setup) -> Iterator[Remark]:
    """Whether the model server answers over HTTP, where the guard has a REST door, and has the same models."""
    config = setup.given.config
    if not (config.rest_listen and config.rest_upstream):
        return
    if not is_installed("rest_listen"):  # told by the check of settings
        return
    from guard.serve.rest.tls import client_context
    from guard.serve.rest.upstream import RestUpstream
    from guard.serve.rest.upstream_watch import RestUpstreamWatch

    async def ask() -> list[Remark]:
        identity = upstream_identity(config)
        tls = None if identity is None else client_context(identity.value)
        readiness = Readiness()
        async with RestUpstream.open(config, max_bytes=MIN_ANSWER_BYTES, tls=tls) as opened:
            watch = RestUpstreamWatch(opened, Models(ModelTable(()), readiness), readiness)
            faults = [await watch.reason_of(watch.server_reason())]
            if faults == [None]:
                faults = [await watch.reason_of(watch.model_reason(spec)) for spec in setup.specs]
        wrong = [fault for fault in faults if fault is not None]
        if not wrong:
            return [Remark("rest", "ok", f"{opened.where} answers as the one of gRPC")]
        return [Remark("rest", "wrong", f"{fault}; name the HTTP port of the same server") for fault in wrong]

    with suppress(GuardError):  # of certificates, which have a check of their own
        yield from asyncio.run(ask())
