"""The methods of the inference listener but ModelInfer: answered here, passed as they came, or refused.

Rule 1: a method passes only if it is harmless by name, or opened by the operator; then it is marked and counted.
Rule 2: what is passed, passes as bytes: servers disagree on the messages behind one name. ServerMetadata alone is
        encoded again, where it names extensions that do not work through the guard.
Rule 3: the mode changes nothing here: a method is opened by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from guard.config import ServeConfig
from guard.errors import NotAllowed
from guard.serve.failure_table import ALLOWED_METHOD
from guard.serve.grpc.call import Call
from guard.serve.grpc.door import Door, Work
from guard.serve.grpc.extensions import working_extensions
from guard.serve.grpc.gatekeeper import Refusal, Wall
from guard.serve.grpc.listener import Handler, Methods
from guard.serve.grpc.metadata import downwards
from guard.serve.grpc.method_groups import opened_methods
from guard.serve.grpc.upstream import UPSTREAM_ENDED, Upstream, end_in_core, path, write_to
from guard.serve.grpc.wire.inference_pb2 import (
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerReadyResponse,
)
from guard.serve.inference_call import UNCHECKED
from guard.serve.metrics import OTHER, Metrics
from guard.serve.models import Models
from guard.serve.readiness import Readiness

STREAM = "ModelStreamInfer"  # whose messages are inspected, unless it is opened
METHODS = (  # by name in metrics; every other method is "other"
    *(
        "ServerLive",
        "ServerReady",
        "ServerMetadata",
        "ModelReady",
        "ModelMetadata",
        STREAM,
        "ModelConfig",
        "ModelStatistics",
    ),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
    *(f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister")),
)


@dataclass(kw_only=True)
class Passage:
    """The handlers of methods that pass by the inspection, and of those that are refused."""

    config: ServeConfig
    models: Models
    upstream: Upstream
    readiness: Readiness
    metrics: Metrics
    door: Door  # of opened methods
    side_door: Door  # of the harmless ones, which are small and many

    def __post_init__(self) -> None:
        self.opened_methods = opened_methods(self.config.allow_methods)

    def methods(self) -> Methods:
        """The handlers of all methods that are known by name, but those whose messages are inspected."""
        found: dict[str, Handler | Wall] = {path(name): self.closed(path(name)) for name in METHODS if name != STREAM}
        found |= {method: self.opened(method) for method in self.opened_methods}
        found |= {
            path("ServerLive"): self.answered("ServerLive", self.server_live),
            path("ServerReady"): self.answered("ServerReady", self.server_ready),
            path("ModelReady"): self.passed("ModelReady", self.model_ready),
            path("ServerMetadata"): self.passed("ServerMetadata", self.server_metadata),
            path("ModelMetadata"): self.passed("ModelMetadata", partial(self.forward, "ModelMetadata")),
        }
        return found

    def answered(self, method: str, answer: Any) -> Handler:
        """Build the handler of a method whose answer is the guard's own, whatever was sent: nothing is read."""

        async def handler(requests: Any, context: Any) -> bytes:  # noqa: ARG001
            self.metrics.calls.labels(method, "answered").inc()
            self.metrics.handled(method, "OK")
            response: bytes = answer().SerializeToString()
            return response

        return grpc.stream_unary_rpc_method_handler(handler)

    def server_live(self) -> ServerLiveResponse:
        """The guard's own liveness, which never depends on the upstream."""
        return ServerLiveResponse(live=True)

    def server_ready(self) -> ServerReadyResponse:
        return ServerReadyResponse(ready=self.readiness.because is None)

    def passed(self, method: str, work: Work) -> Handler:
        """Build the handler of a harmless unary method; its ends are counted, `passed` if the model server answered."""

        def ended(call: Call) -> None:
            self.metrics.calls.labels(method, "passed" if call.end == "answered" else call.end).inc()
            self.metrics.handled(method, call.code)

        return self.side_door.unary(work, ended=ended)

    async def model_ready(self, request: bytes, call: Call) -> bytes:
        """Answer ModelReady: false for a model while the guard is not ready for it, else what the upstream says."""
        with suppress(DecodeError):  # the upstream says what is wrong with it
            asked = ModelReadyRequest.FromString(request)
            if any(
                self.readiness.of(model.label) is not None
                for model in self.models.table.named(asked.name)
                if not asked.version or model.spec.version in ("", asked.version)
            ):
                return ModelReadyResponse(ready=False).SerializeToString()
        return await self.forward("ModelReady", request, call)

    async def server_metadata(self, request: bytes, call: Call) -> bytes:
        """Answer ServerMetadata as the upstream does, but for the extensions that do not work through the guard."""
        answer = await self.upstream.unary(path("ServerMetadata"), request, call.upward, call.forward_timeout_s())
        body = working_extensions(answer.body, self.opened_methods, self.models.table.strictest_mode)
        return await call.deliver(replace(answer, body=body))

    async def forward(self, method: str, request: bytes, call: Call) -> bytes:
        """Forward a request as it came, and return the upstream's answer."""
        return await call.deliver(
            await self.upstream.unary(path(method), request, call.upward, call.forward_timeout_s())
        )

    def closed(self, method: str | None) -> Wall:
        """Refuse a method that is not opened (None: any that is not known by name); its messages are never read."""
        named = "this method" if method is None else method
        label = OTHER if method is None else self.metrics.method(method.rpartition("/")[2])

        def refuse(context: Any) -> Refusal:
            self.metrics.calls.labels(label, "refused").inc()
            self.metrics.handled(label, NotAllowed.status)
            error = NotAllowed(f"the guard does not pass {named}, which it cannot inspect; allow_methods opens it")
            return Call.of(context).refusal(error)

        return Wall(refuse)

    def opened(self, method: str) -> Handler:
        """Build the handler of an opaque method, unary or streaming, both ways as bytes."""
        label = self.metrics.method(method.rpartition("/")[2])

        async def work(call: Call) -> None:
            call.told = UNCHECKED
            self.metrics.unchecked.labels(OTHER, ALLOWED_METHOD).inc()
            await self.pass_through(method, call)

        def ended(call: Call) -> None:
            self.metrics.calls.labels(label, "opened" if call.end == "answered" else call.end).inc()
            self.metrics.handled(label, call.code)

        return self.door.streaming(work, ended=ended)

    async def pass_through(self, method: str, call: Call) -> None:
        """Pass messages both ways until the upstream ends the call or the client leaves; then the other end follows."""
        upstream = self.upstream.stream(method, call.upward, call.forward_timeout_s())
        upwards = asyncio.create_task(pass_upwards(self.door.stream(call), upstream))
        try:
            await pass_downwards(upstream, call)
        except (asyncio.CancelledError, grpc.aio.AioRpcError) as ended:
            if upwards.done() and not upwards.cancelled() and (error := upwards.exception()) is not None:
                raise error from None  # our own way of ending the upstream's call
            if isinstance(ended, grpc.aio.AioRpcError):
                raise self.upstream.judged_now(ended) from ended
            raise
        finally:
            end_in_core(upstream)  # gRPC drops, but does not end, the call of a handler that is cancelled in a write
            upwards.cancel()
            await asyncio.gather(upwards, return_exceptions=True)


async def pass_upwards(messages: AsyncGenerator[bytes, None], upstream: Any) -> None:
    """Pass the client's messages to the upstream; an error of ours ends the upstream's call."""
    try:
        async with aclosing(messages):  # gives a message's memory back at once, however this ends
            async for message in messages:
                await write_to(upstream, message)
                del message  # its memory is given back when the next one is waited for
        await upstream.done_writing()
    except UPSTREAM_ENDED:
        return  # `pass_downwards` tells how
    except BaseException:
        end_in_core(upstream)
        raise


async def pass_downwards(upstream: Any, call: Call) -> None:
    """Pass the upstream's answers and metadata to the client. Raises grpc.aio.AioRpcError where the call failed."""
    if initial := downwards(await upstream.initial_metadata()):
        await call.context.send_initial_metadata(initial)
    while (message := await upstream.read()) is not grpc.aio.EOF:
        await call.context.write(message)
    call.context.set_trailing_metadata((*downwards(await upstream.trailing_metadata()), *call.marks))
