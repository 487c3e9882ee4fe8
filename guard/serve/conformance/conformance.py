"""A trial from end to end: the servers are found, the guard is started where there is none, each check is made.

Safe on a server in production: what is sent to it reads or infers. A run makes some two hundred calls, one at a time,
the largest of 5 MiB; what changes a server, hangs or fails on purpose is played by the wiretap and never comes to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from guard.bundle import Bundle
from guard.config import load_config
from guard.errors import ConfigError, DataError, NotReadyError
from guard.serve.client_channel import ClientTls
from guard.serve.conformance.checks import CHECKS, Check
from guard.serve.conformance.procedures import (
    NO_MODEL,
    Procedure,
    bundled_request,
    listed_models,
    procedures,
    request_of_zeros,
)
from guard.serve.conformance.reply import Caller, calling
from guard.serve.conformance.report import ConformanceReport, Finding
from guard.serve.conformance.side_by_side import Differs, Inapplicable, SideBySide
from guard.serve.conformance.wiretap import Wiretap, tapping
from guard.serve.event_loop import EventLoop
from guard.serve.grpc.method_groups import REPOSITORY_INDEX
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest, ModelMetadataRequest
from guard.serve.log import Log
from guard.serve.server import running

FREE_PORT = "127.0.0.1:0"
CONNECT_S = 5.0
MAX_MESSAGE_BYTES = 24 * 2**20
READY_POLL_S = 0.02
MAX_CHECK_FACTOR = 6.0  # times the time for a call that one check may take, since it makes several


@dataclass(frozen=True)
class TrialOptions:
    """What is tried: the model server, and the guard that is there or is to be started."""

    upstream: str
    guard: str | None = None
    bundle: str | None = None
    mode: str | None = None  # of a guard that is started; unless given enforce with a bundle, off without
    model: str | None = None  # NAME or NAME:VERSION
    request: Path | None = None  # a ModelInferRequest to send, serialized or as protobuf's JSON
    only: tuple[str, ...] = ()  # names of the procedures to try; all unless given
    tls: ClientTls | None = None  # how the model server is spoken to, and a guard that is there
    timeout_s: float = 10.0


Start = Callable[[str, TrialOptions], AbstractAsyncContextManager[tuple[str, str]]]


def run_trial(options: TrialOptions) -> ConformanceReport:
    """Make every check of every remote procedure.

    Raises:
        UserError: the server does not answer, no guard is there and none can be started, or no request can be made.
    """
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(tried(options))


async def tried(options: TrialOptions, *, start: Start | None = None) -> ConformanceReport:
    """Make every check as `run_trial` does; `start` starts what is tried where no guard is there."""
    async with calling(options.upstream, options.tls) as direct:
        await reach(direct, options)
        infer, unnamed = await find_request(direct, options)
        async with guarded(direct, options, start or started_guard) as (through, wiretap, name):
            trial = SideBySide(direct, through, wiretap, options.timeout_s)
            findings = [
                await finding(trial, procedure, check_name, check)
                for procedure in chosen(options.only, procedures(infer, unnamed=unnamed))
                for check_name, check in CHECKS.items()
            ]
    return ConformanceReport(
        upstream=options.upstream,
        guard=name,
        model="" if infer is None else infer.model_name,
        made_by=f"guard {version('inference-guard')}",
        findings=findings,
    )


def chosen(only: Sequence[str], found: Iterable[Procedure]) -> list[Procedure]:
    """The procedures of these names, or all. Raises ConfigError for a name that none has."""
    known = {procedure.name: procedure for procedure in found}
    for name in only:
        if name not in known:
            raise ConfigError(f"--only {name}: no such procedure is tried; known are {', '.join(known)}")
    return [procedure for name, procedure in known.items() if name in only or not only]


async def finding(trial: SideBySide, procedure: Procedure, name: str, check: Check) -> Finding:
    """Make one check, and say how it ended."""
    limit_s = MAX_CHECK_FACTOR * trial.timeout_s
    try:
        async with asyncio.timeout(limit_s):
            await check(trial, procedure)
    except Inapplicable as error:
        return Finding(procedure.name, name, "skipped", str(error))
    except Differs as error:
        return Finding(procedure.name, name, "failed", str(error))
    except TimeoutError:
        return Finding(procedure.name, name, "failed", f"it was not over within {limit_s:g} s")
    except grpc.RpcError as error:
        return Finding(procedure.name, name, "failed", f"the call ended in an unexpected way: {error!r:.200}")
    return Finding(procedure.name, name, "passed")


async def reach(caller: Caller, options: TrialOptions) -> None:
    """Wait until a server can be reached. Raises NotReadyError."""
    try:
        async with asyncio.timeout(min(CONNECT_S, options.timeout_s)):
            await caller.channel.channel_ready()
    except TimeoutError:
        wanted = "without TLS; --tls and what belongs to it speak TLS" if options.tls is None else "by TLS, trusted so"
        raise NotReadyError(f"nothing answers at {caller.address}; wanted a server of gRPC {wanted}") from None


async def find_request(direct: Caller, options: TrialOptions) -> tuple[ModelInferRequest | None, str]:
    """The request for ModelInfer: given, of the bundle's own samples, or zeros; None, and why, where no model is named.

    Raises:
        DataError: a file is no request, or none can be made up.
    """
    if options.request is not None:
        return read_request(options.request), ""
    if options.bundle is not None and options.model is None:
        return bundled_request(Bundle.open(options.bundle)), ""
    name, _, of_version = (options.model or await only_model(direct, options.timeout_s)).partition(":")
    if not name:
        return None, NO_MODEL
    ask = ModelMetadataRequest(name=name, version=of_version).SerializeToString()
    reply = await direct.call(path("ModelMetadata"), ask, timeout_s=options.timeout_s)
    if not reply.ok:
        said = f"{reply.code.name}, {reply.details}"
        raise DataError(f"the server answers about model {name!r}: {said}; name another with --model")
    return request_of_zeros(b"".join(reply.messages), name, of_version), ""


async def only_model(direct: Caller, timeout_s: float) -> str:
    """The model of a server that lists one; an empty text where it lists none or several, or lists nothing."""
    for method in (path("RepositoryIndex"), REPOSITORY_INDEX):
        reply = await direct.call(method, b"", timeout_s=timeout_s)
        if reply.ok:
            models = listed_models(b"".join(reply.messages))
            return ":".join(filter(None, models[0])) if len(models) == 1 else ""
    return ""


def read_request(file: Path) -> ModelInferRequest:
    """Read a ModelInferRequest, serialized or as protobuf's JSON. Raises DataError."""
    try:
        content = file.read_bytes()
        if content.lstrip()[:1] == b"{":
            return json_format.Parse(content, ModelInferRequest())
        return ModelInferRequest.FromString(content)
    except (OSError, ValueError, DecodeError, json_format.ParseError) as error:
        raise DataError(f"{file} is no ModelInferRequest, neither serialized nor as JSON: {error}") from error


@asynccontextmanager
async def guarded(
    direct: Caller, options: TrialOptions, start: Start
) -> AsyncIterator[tuple[Caller, Wiretap | None, str]]:
    """A guard in front of the server: the one that is there, or one that is started, with a wiretap behind it.

    Raises:
        UserError: there is none, it does not answer, or it cannot start or does not get ready.
    """
    if options.guard is not None:
        async with calling(options.guard, options.tls) as through:
            await reach(through, options)
            yield through, None, options.guard
        return
    async with (
        tapping(direct) as (wiretap, behind),
        start(behind, options) as (address, name),
        calling(address) as through,
    ):
        yield through, wiretap, name


@asynccontextmanager
async def started_guard(upstream: str, options: TrialOptions) -> AsyncIterator[tuple[str, str]]:
    """A ready guard in front of a server; yields its address, and what it is. Raises UserError."""
    mode = options.mode or ("off" if options.bundle is None else "enforce")
    if options.bundle is None and mode != "off":
        raise ConfigError(f"--mode {mode} inspects, and no bundle is named; give --bundle DIRECTORY, or --mode off")
    wanted = load_config(None, {}, {"mode": mode})
    config = replace(
        wanted,
        listen=FREE_PORT,
        admin_listen=FREE_PORT,
        metrics_listen=FREE_PORT,
        bundle=options.bundle or "",
        upstream=upstream,
        allow_methods=("@read", "ModelStreamInfer") if wanted.mode == "off" else ("@read",),
        max_message_bytes=MAX_MESSAGE_BYTES,  # more than any check sends, whatever the bundle's own limit is
        drain_s=0.0,
        threads=1,
    )
    async with running(config, log=Log("error")) as serving:
        for _ in ticks(options.timeout_s):
            if serving.readiness.because is None:
                break
            await asyncio.sleep(READY_POLL_S)
        else:
            raise NotReadyError(f"the guard that was started is not ready: {serving.readiness.because}")
        yield serving.address, f"started, mode {wanted.mode}"


def ticks(within_s: float) -> Iterator[None]:
    """Yield as often as `READY_POLL_S` goes into a time."""
    yield from (None for _ in range(max(1, int(within_s / READY_POLL_S))))
