"""The service grpc.health.v1, from the one Readiness: what is answered is what holds at that moment.

Whatever can connect may ask: a kubelet has neither token nor certificate.

"" and "liveness" say that the guard lives; "readiness" and the inference service's name say that it is ready.
"""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from guard.errors import MalformedRequest, UnknownService
from guard.serve.grpc.call import Call
from guard.serve.grpc.door import Door
from guard.serve.grpc.listener import Methods
from guard.serve.grpc.outermost import nothing
from guard.serve.grpc.upstream import SERVICE
from guard.serve.readiness import Readiness

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
LIVE = frozenset({"", "liveness"})
READY = frozenset({"readiness", SERVICE})


class Health:
    """The methods Check and Watch; `close` ends the watchers, so that a stopping server need not wait for them."""

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness
        self.watchers: set[asyncio.Event] = set()
        self.closed = False
        readiness.listeners.append(lambda _: self.wake())

    def methods(self, door: Door) -> Methods:
        async def watch(call: Call) -> None:
            async with door.message(call) as request:
                service = asked(request)
            await self.watch(service, call)

        return {
            f"/{HEALTH}/Check": door.unary(self.check, identify=nothing),
            f"/{HEALTH}/Watch": grpc.stream_stream_rpc_method_handler(door.outermost(watch)),
        }

    def status(self, service: str) -> int | None:
        """The status of a service by its name; None for a name that is not served."""
        if service in LIVE:
            return int(health_pb2.HealthCheckResponse.SERVING)
        if service in READY:
            ready = self.readiness.because is None
            return int(health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING)
        return None

    async def check(self, request: bytes, call: Call) -> bytes:  # noqa: ARG002
        service = asked(request)
        status = self.status(service)
        if status is None:
            raise UnknownService(f"no health is known for {service[:80]!r}")
        return answer(status)

    async def watch(self, service: str, call: Call) -> None:
        changed = asyncio.Event()
        self.watchers.add(changed)
        told: int | None = None
        try:
            while not self.closed:
                changed.clear()
                status = self.status(service)
                now = int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN) if status is None else status
                if now != told:
                    await call.context.write(answer(now))
                    told = now
                await changed.wait()
        finally:
            self.watchers.discard(changed)

    def wake(self) -> None:
        for changed in self.watchers:
            changed.set()

    def close(self) -> None:
        self.closed = True
        self.wake()


def asked(request: bytes) -> str:
    """Read the service's name from a HealthCheckRequest. Raises MalformedRequest."""
    try:
        return str(health_pb2.HealthCheckRequest.FromString(request).service)
    except DecodeError as error:
        raise MalformedRequest("the request is no grpc.health.v1.HealthCheckRequest") from error


def answer(status: int) -> bytes:
    response: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return response
