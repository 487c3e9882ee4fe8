"""The guarded model server as the guard sees it: calls go through as bytes, and its readiness is watched.

Rule 1: the upstream gets the bytes that were handed in; nothing is re-serialized here.
Rule 2: end-to-end metadata passes both ways, `guard-*` and what belongs to one hop never.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from guard.config import ServeConfig
from guard.errors import UpstreamDown
from guard.manifest import ModelSpec
from guard.serve.grpc.channel import open_channel, tls_fault
from guard.serve.grpc.metadata import Metadata, downwards
from guard.serve.grpc.wire.inference_pb2 import (
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)

SERVICE = "inference.GRPCInferenceService"
POLL_READY_S = 1.0  # between checks while all is well; a lost connection is noticed at once
POLL_DOWN_S = 0.2


# What writing to a call raises where the upstream has ended it: its status, the library's own state, or the core's.
UPSTREAM_ENDED = (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.InternalError)


def path(method: str) -> str:
    """The full name of a method of the inference service."""
    return f"/{SERVICE}/{method}"


async def answer_of(call: Any) -> bytes:
    body: bytes = await call
    return body


def ignore(answering: asyncio.Future[bytes]) -> None:
    """Discard an answer that is no longer waited for, and the error where there is none."""
    if not answering.cancelled():
        answering.exception()


def end_in_core(call: Any) -> None:
    """Cancel a call of ours so that gRPC gives back what it holds.

    A cancelled task of grpc.aio leaves its operations behind, with all of the call's metadata, for good: 300 KB for
    each client that leaves with a header that large. Ended in the core, the operations finish.
    """
    core = getattr(call, "_cython_call", None)
    if core is None or not hasattr(core, "cancel"):
        call.cancel()
    else:
        core.cancel("nobody waits for the answer any more")


@dataclass(frozen=True)
class Answer:
    """A unary answer as it came, with its metadata."""

    body: bytes
    initial: Metadata
    trailing: Metadata


class Upstream:
    """A channel to the model server, which lasts as long as `open`."""

    def __init__(self, channel: grpc.aio.Channel, address: str, model: ModelSpec, *, timeout_s: float) -> None:
        self.channel = channel
        self.address = address
        self.model = model
        self.timeout_s = timeout_s
        self.versions: tuple[str, ...] | None = None  # of the model, as last told; None: not yet, (): it has none
        self.doubt = asyncio.Event()

    @staticmethod
    @asynccontextmanager
    async def open(config: ServeConfig, model: ModelSpec, *, max_message_bytes: int) -> AsyncIterator[Upstream]:
        """Open a channel and never wait for the model server: it may start after the guard, or go and come back.

        Raises:
            ConfigError: as `open_channel`.
        """
        async with open_channel(config, max_message_bytes=max_message_bytes) as channel:
            yield Upstream(channel, config.upstream, model, timeout_s=config.upstream_timeout_s)

    async def unary(self, method: str, request: bytes, metadata: Metadata, timeout_s: float | None) -> Answer:
        """Make a unary call, bytes in and bytes out.

        Raises:
            UpstreamDown: the connection failed.
            grpc.aio.AioRpcError: the model server answered with an error.
        """
        start: Any = self.channel.unary_unary(method)  # without serializers: bytes in, bytes out
        call = start(request, metadata=grpc.aio.Metadata(*metadata), timeout=timeout_s)
        answering = asyncio.ensure_future(answer_of(call))
        try:
            body = await asyncio.shield(answering)
        except grpc.aio.AioRpcError as error:
            raise self.judged(error) from error
        except asyncio.CancelledError:
            answering.add_done_callback(ignore)
            end_in_core(call)
            raise
        return Answer(body, downwards(await call.initial_metadata()), downwards(await call.trailing_metadata()))

    def stream(self, method: str, metadata: Metadata, timeout_s: float | None) -> Any:
        """Start an opaque call of any arity, to be written to and read from."""
        start: Any = self.channel.stream_stream(method)
        return start(metadata=grpc.aio.Metadata(*metadata), timeout=timeout_s)

    def judged(self, error: grpc.aio.AioRpcError) -> Exception:
        """Return `error`, or UpstreamDown where the connection is to blame and not the model server itself."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return error
        self.doubt.set()
        if self.channel.get_state() is grpc.ChannelConnectivity.READY:
            return error
        return UpstreamDown("the model server behind the guard cannot be reached; nothing answered this request")

    async def watch(self, say: Callable[[str | None], None]) -> None:
        """Check for ever, and pass to `say` after each check why the upstream is not ready (None: it is)."""
        while True:
            self.doubt.clear()
            reason = await self.check()
            say(reason)
            await self.pause(ready=reason is None)

    async def pause(self, *, ready: bool) -> None:
        """Wait until the next check is due: some time, a failed call, or the loss of the connection."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(self.doubt.wait())] if ready else []
        if ready and (state := self.channel.get_state()) is grpc.ChannelConnectivity.READY:
            waits.append(asyncio.create_task(self.channel.wait_for_state_change(state)))
        try:
            if waits:
                await asyncio.wait(waits, timeout=POLL_READY_S, return_when=asyncio.FIRST_COMPLETED)
            if not ready or self.doubt.is_set():
                await asyncio.sleep(POLL_DOWN_S if not ready else 0)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def check(self) -> str | None:
        """The reason why the upstream is not ready for this bundle's model; None when it is."""
        name, version = self.model.name, self.model.version
        try:
            server = ServerReadyResponse.FromString(await self.ask("ServerReady", ServerReadyRequest()))
            if not server.ready:
                return f"the model server at {self.address} says that it is not ready"
            model = ModelReadyResponse.FromString(
                await self.ask("ModelReady", ModelReadyRequest(name=name, version=version))
            )
            if not model.ready:
                return f"the model server at {self.address} says that model {name!r} is not ready"
            metadata = ModelMetadataResponse.FromString(
                await self.ask("ModelMetadata", ModelMetadataRequest(name=name, version=version))
            )
        except grpc.aio.AioRpcError as error:
            return self.complaint(error)
        except UpstreamDown as error:
            fault = tls_fault(error.__cause__.details()) if isinstance(error.__cause__, grpc.aio.AioRpcError) else ""
            return f"the model server at {self.address} cannot be reached{fault}"
        except ValueError:
            return f"the model server at {self.address} does not answer in the Open Inference Protocol"
        self.versions = tuple(metadata.versions)
        return mismatch(metadata, self.model)

    async def ask(self, method: str, request: Any) -> bytes:
        return (await self.unary(path(method), request.SerializeToString(), (), self.timeout_s)).body

    def complaint(self, error: grpc.aio.AioRpcError) -> str:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the model server at {self.address} did not answer within {self.timeout_s:g} s"
        said = f"{error.code().name}, {error.details()}"
        return f"the model server at {self.address} answered about model {self.model.name!r}: {said}"


def mismatch(metadata: ModelMetadataResponse, model: ModelSpec) -> str | None:
    """The first difference between the upstream's model and the bundle's; None where nothing tells them apart."""
    spec, output = model.input, model.output
    where = f"the upstream's model {model.name!r}"
    if not model.version and len(metadata.versions) > 1:
        return (
            f"{where} has versions {', '.join(metadata.versions)}; the bundle is for no one in particular and inspects "
            "none of them: train it with --serves NAME:VERSION"
        )
    if model.version and metadata.versions and model.version not in metadata.versions:
        return f"{where} has versions {', '.join(metadata.versions)}; the bundle was made for version {model.version}"
    if metadata.inputs:
        names = [tensor.name for tensor in metadata.inputs]
        if names != [spec.name]:
            return f"{where} takes inputs {', '.join(names)}; the bundle expects {spec.name} alone"
        if metadata.inputs[0].datatype != spec.datatype:
            return f"{where} takes {metadata.inputs[0].datatype}; the bundle expects {spec.datatype}"
        if not fits(metadata.inputs[0].shape, spec.wire_shape):
            return f"{where} takes shape {list(metadata.inputs[0].shape)}; the bundle expects {[-1, *spec.wire_shape]}"
    if metadata.outputs:
        shapes = {tensor.name: list(tensor.shape) for tensor in metadata.outputs}
        if output.name not in shapes:
            return f"{where} gives outputs {', '.join(shapes)}; the bundle expects {output.name}"
        shape = shapes[output.name]
        if output.kind != "label" and len(shape) > 1 and shape[-1] not in (-1, output.columns):
            return f"{where} gives {shape[-1]} numbers an item; the bundle expects {output.columns}, {output.in_words}"
    return None


def fits(found: Sequence[int], item: tuple[int, ...]) -> bool:
    """Whether a declared shape [item, ...] (-1: any) can hold such items."""
    return len(found) == len(item) + 1 and all(
        size in (-1, wanted) for size, wanted in zip(found[1:], item, strict=True)
    )
