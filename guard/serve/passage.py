"""Every method of the inference listener but ModelInfer: answered here, passed as it came, or refused.

Rule 1: a method passes only if it is harmless by name, or opened by the operator; then it is marked and counted.
Rule 2: what is passed, passes as bytes: servers disagree on the messages behind one name.
Rule 3: the mode changes nothing here: a method is opened by name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from guard.config import ServeConfig
from guard.errors import ConfigError, NotAllowed
from guard.serve.call import UNCHECKED, Call
from guard.serve.log import Log
from guard.serve.metrics import OTHER, Metrics
from guard.serve.readiness import Readiness
from guard.serve.upstream import Upstream, end_to_end, path
from guard.serve.wire.inference_pb2 import (
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerReadyResponse,
)

METHODS = (  # by name in metrics; every other method is "other"
    *(
        "ServerLive",
        "ServerReady",
        "ServerMetadata",
        "ModelReady",
        "ModelMetadata",
        "ModelStreamInfer",
        "ModelConfig",
        "ModelStatistics",
    ),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
    *(f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister")),
)
OTHERS_SERVICES = ("/grpc.health.v1.", "/grpc.reflection.")  # answered by handlers of their own

Handler = Callable[[bytes, Any], Awaitable[bytes]]


@dataclass(kw_only=True)
class Passage(grpc.GenericRpcHandler):
    """What goes by the inspection, and what does not."""

    config: ServeConfig
    guarded: str  # the guarded model's name
    upstream: Upstream
    readiness: Readiness
    metrics: Metrics
    log: Log

    def __post_init__(self) -> None:
        self.opened_methods = opened_methods(self.config.allow_methods)
        self.harmless: dict[str, Handler] = {
            path("ServerLive"): self.server_live,
            path("ServerReady"): self.server_ready,
            path("ModelReady"): self.model_ready,
            path("ServerMetadata"): self.passed("ServerMetadata"),
            path("ModelMetadata"): self.passed("ModelMetadata"),
        }

    def service(self, details: Any) -> Any:
        """The handler of a method path; None leaves it to the other handlers of this listener."""
        method: str = details.method
        if method.startswith(OTHERS_SERVICES):
            return None
        if handler := self.harmless.get(method):
            return grpc.unary_unary_rpc_method_handler(handler)
        through = self.opened if method in self.opened_methods else self.closed
        return grpc.stream_stream_rpc_method_handler(through(method))

    async def server_live(self, request: bytes, context: Any) -> bytes:  # noqa: ARG002
        """The guard's own: it never depends on the upstream."""
        self.metrics.calls.labels("ServerLive", "answered").inc()
        return ServerLiveResponse(live=True).SerializeToString()

    async def server_ready(self, request: bytes, context: Any) -> bytes:  # noqa: ARG002
        self.metrics.calls.labels("ServerReady", "answered").inc()
        return ServerReadyResponse(ready=self.readiness.because is None).SerializeToString()

    async def model_ready(self, request: bytes, context: Any) -> bytes:
        """False for the guarded model while the guard is not ready; otherwise what the upstream says."""
        with suppress(DecodeError):  # the upstream says what is wrong with it
            if ModelReadyRequest.FromString(request).name == self.guarded and self.readiness.because is not None:
                self.metrics.calls.labels("ModelReady", "answered").inc()
                return ModelReadyResponse(ready=False).SerializeToString()
        return await self.passed("ModelReady")(request, context)

    def passed(self, method: str) -> Handler:
        """A harmless unary method goes through as it came."""

        async def handler(request: bytes, context: Any) -> bytes:
            call = Call.of(context, timeout_s=self.config.timeout_s)
            self.metrics.calls.labels(method, "passed").inc()
            async with call.answering(self.log):
                return await call.deliver(
                    await self.upstream.unary(path(method), request, call.upward, call.remaining_s())
                )
            raise AssertionError("answering() has aborted the call")

        return handler

    def closed(self, method: str) -> Callable[[AsyncIterator[bytes], Any], Awaitable[None]]:
        async def handler(requests: AsyncIterator[bytes], context: Any) -> None:  # noqa: ARG001
            call = Call.of(context, timeout_s=self.config.timeout_s)
            self.metrics.calls.labels(self.metrics.method(method.rpartition("/")[2]), "refused").inc()
            async with call.answering(self.log):
                raise NotAllowed(
                    f"the guard does not pass {method[:80]}, which it cannot inspect; allow_methods opens it"
                )

        return handler

    def opened(self, method: str) -> Callable[[AsyncIterator[bytes], Any], Awaitable[None]]:
        """An opaque method, unary or streaming, both ways as bytes."""

        async def handler(requests: AsyncIterator[bytes], context: Any) -> None:
            call = Call.of(context, timeout_s=self.config.timeout_s)
            call.told = UNCHECKED
            self.metrics.calls.labels(self.metrics.method(method.rpartition("/")[2]), "opened").inc()
            self.metrics.unchecked.labels(OTHER, "allowed_method").inc()
            async with call.answering(self.log):
                upstream = self.upstream.stream(method, requests, call.upward, context.time_remaining())
                if initial := end_to_end(await upstream.initial_metadata()):
                    await context.send_initial_metadata(initial)
                async for message in upstream:
                    await context.write(message)
                context.set_trailing_metadata((*end_to_end(await upstream.trailing_metadata()), *call.marks))

        return handler


def opened_methods(names: Sequence[str]) -> frozenset[str]:
    """Full paths of the methods that the operator opened; a bare name is one of the inference service's.

    Raises:
        ConfigError: it names the method that is inspected.
    """
    paths = frozenset(name if name.startswith("/") else f"/{name}" if "/" in name else path(name) for name in names)
    if path("ModelInfer") in paths:
        raise ConfigError(
            "allow_methods names ModelInfer, which is always inspected; to let everything through, set mode = 'off'"
        )
    return paths
