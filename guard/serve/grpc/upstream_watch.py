"""The watch on the model server: whether it is ready, and has each guarded model as its bundle expects it.

Rule 1: one model that is missing or differs makes that model not ready; the server's own absence makes all so.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from guard.errors import UpstreamDown
from guard.manifest import ModelSpec
from guard.serve.grpc.channel import tls_fault
from guard.serve.grpc.method_groups import REPOSITORY_INDEX
from guard.serve.grpc.served_versions import Index, ServerFacts, noted
from guard.serve.grpc.upstream import Upstream, path
from guard.serve.grpc.wire.inference_pb2 import (
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from guard.serve.models import Models
from guard.serve.readiness import Readiness

POLL_READY_S = 1.0  # between checks while all is well; a lost connection is noticed at once
POLL_DOWN_S = 0.2
PART = "upstream"


@dataclass(frozen=True)
class UpstreamWatch:
    """The watch that keeps the upstream's part of readiness, and the versions that it has, true."""

    upstream: Upstream
    models: Models
    readiness: Readiness
    server: ServerFacts = field(default_factory=partial(ServerFacts, (path("RepositoryIndex"), REPOSITORY_INDEX)))

    async def run(self) -> None:
        """Check the model server until the task is cancelled."""
        while True:
            self.upstream.doubt.clear()
            ready = await self.check()
            await self.pause(ready=ready)

    async def check(self) -> bool:
        """Check the server and each model once, and tell readiness; return whether all are ready."""
        reason = await self.server_reason()
        table = self.models.table
        if reason is None:
            for model in table.models:
                of_model = await self.model_reason(model.spec)
                if isinstance(of_model, UpstreamDown):
                    reason = self.unreachable(of_model)
                    break
                if self.models.table is table:  # otherwise it was replaced meanwhile, and is checked next
                    self.readiness.say(PART, of_model, model=model.label)
        if reason is not None:
            self.server.forget()
        self.readiness.say(PART, reason)
        return self.models.table is not table or self.readiness.part(PART) is None

    async def objection(self, model: ModelSpec) -> str | None:
        """What the model server, if it is there, lacks of a model; None where nothing speaks against it."""
        if await self.server_reason() is not None:
            return None
        reason = await self.model_reason(model)
        return reason if isinstance(reason, str) else None

    def look_again(self) -> None:
        """Have the server and all models checked at once."""
        self.upstream.doubt.set()

    async def pause(self, *, ready: bool) -> None:
        """Wait until the next check is due: some time, a failed call, or the loss of the connection."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(self.upstream.doubt.wait())] if ready else []
        if ready and (state := self.upstream.channel.get_state()) is grpc.ChannelConnectivity.READY:
            waits.append(asyncio.create_task(self.upstream.channel.wait_for_state_change(state)))
        try:
            if waits:
                await asyncio.wait(waits, timeout=POLL_READY_S, return_when=asyncio.FIRST_COMPLETED)
            if not ready or self.upstream.doubt.is_set():
                await asyncio.sleep(POLL_DOWN_S if not ready else 0)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def server_reason(self) -> str | None:
        """The reason why the model server is not ready; None when it is."""
        where = f"the model server at {self.upstream.address}"
        try:
            server = ServerReadyResponse.FromString(await self.upstream.ask("ServerReady", ServerReadyRequest()))
        except grpc.aio.AioRpcError as error:
            return self.complaint(error)
        except UpstreamDown as error:
            return self.unreachable(error)
        except DecodeError:
            return f"{where} does not answer in the Open Inference Protocol"
        return None if server.ready else f"{where} says that it is not ready"

    async def model_reason(self, model: ModelSpec) -> str | UpstreamDown | None:
        """The reason why the upstream's model is not ready for its bundle; None when it is."""
        name, version = model.name, model.version
        where = f"the model server at {self.upstream.address}"
        try:
            ready = ModelReadyResponse.FromString(
                await self.upstream.ask("ModelReady", ModelReadyRequest(name=name, version=version))
            )
            if not ready.ready:
                return f"{where} says that model {name!r} is not ready"
            metadata = ModelMetadataResponse.FromString(
                await self.upstream.ask("ModelMetadata", ModelMetadataRequest(name=name, version=version))
            )
        except grpc.aio.AioRpcError as error:
            return self.complaint(error, name)
        except UpstreamDown as error:
            return error
        except DecodeError:
            return f"{where} does not answer in the Open Inference Protocol"
        try:
            served = await self.versions_of(name, metadata)
        except UpstreamDown as error:
            return error
        return mismatch(metadata, model, noted(self.models.versions, name, served))

    async def versions_of(self, name: str, metadata: ModelMetadataResponse) -> tuple[str, ...] | None:
        """The versions that the server has of a model, whose metadata are these; None where nothing tells them."""

        async def ask_name() -> str | None:
            with suppress(grpc.aio.AioRpcError, DecodeError):
                answer = await self.upstream.ask("ServerMetadata", ServerMetadataRequest())
                return str(ServerMetadataResponse.FromString(answer).name)
            return None

        async def ask_index(method: str) -> Index | None:
            with suppress(grpc.aio.AioRpcError, DecodeError):
                request = RepositoryIndexRequest(ready=True).SerializeToString()
                answer = await self.upstream.unary(method, request, (), self.upstream.timeout_s)
                found = RepositoryIndexResponse.FromString(answer.body).models
                return [(model.name, model.version) for model in found]
            return None

        return await self.server.versions_of(name, metadata.versions, ask_name=ask_name, ask_index=ask_index)

    def unreachable(self, error: UpstreamDown) -> str:
        fault = tls_fault(error.__cause__.details()) if isinstance(error.__cause__, grpc.aio.AioRpcError) else ""
        return f"the model server at {self.upstream.address} cannot be reached{fault}"

    def complaint(self, error: grpc.aio.AioRpcError, model: str | None = None) -> str:
        where = f"the model server at {self.upstream.address}"
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{where} did not answer within {self.upstream.timeout_s:g} s"
        about = "when asked whether it is ready" if model is None else f"about model {model!r}"
        return f"{where} answered {about}: {error.code().name}, {error.details()}"


def mismatch(metadata: ModelMetadataResponse, model: ModelSpec, served: Sequence[str]) -> str | None:
    """The first difference between the upstream's model and the bundle's; None where nothing tells them apart.

    `served` are the versions that the upstream has, as far as it tells them.
    """
    spec, output = model.input, model.output
    where = f"the upstream's model {model.name!r}"
    if not model.version and len(served) > 1:
        return (
            f"{where} has versions {', '.join(served)}; the bundle is for no one in particular and inspects "
            "none of them: train it with --serves NAME:VERSION"
        )
    if model.version and served and model.version not in served:
        return f"{where} has versions {', '.join(served)}; the bundle was made for version {model.version}"
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
        given = numbers_an_item(shapes[output.name])
        if output.kind != "label" and given not in (None, output.columns):
            return f"{where} gives {given} numbers an item; the bundle expects {output.columns}, {output.in_words}"
    return None


def numbers_an_item(shape: Sequence[int]) -> int | None:
    """How many numbers a declared shape [item, ...] holds for an item; None where it leaves that open.

    Example: 1,000 of [-1, 1000, 1, 1], as a model that ends in a convolution declares it.
    """
    return math.prod(shape[1:]) if len(shape) > 1 and min(shape[1:]) >= 0 else None


def fits(found: Sequence[int], item: tuple[int, ...]) -> bool:
    """Whether a declared shape [item, ...] (-1: any) can hold such items."""
    return len(found) == len(item) + 1 and all(
        size in (-1, wanted) for size, wanted in zip(found[1:], item, strict=True)
    )
