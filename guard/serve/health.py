"""grpc.health.v1 from the one Readiness: what is answered is what holds at that moment.

"" and "liveness" say that the guard lives; "readiness" and the inference service's name say that it is ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guard.serve.readiness import Readiness
from guard.serve.upstream import SERVICE

LIVE = frozenset({"", "liveness"})
READY = frozenset({"readiness", SERVICE})


class Health(health_pb2_grpc.HealthServicer):
    """Check and Watch. `close` ends the watchers, so that a stopping server need not wait for them."""

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness
        self.watchers: set[asyncio.Event] = set()
        self.closed = False
        readiness.listeners.append(lambda _: self.wake())

    def status(self, service: str) -> int | None:
        """None for a name that nobody serves."""
        if service in LIVE:
            return int(health_pb2.HealthCheckResponse.SERVING)
        if service in READY:
            ready = self.readiness.because is None
            return int(health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING)
        return None

    async def Check(self, request: Any, context: Any) -> Any:
        status = self.status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no health is known for {request.service[:80]!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002
        changed = asyncio.Event()
        self.watchers.add(changed)
        told: int | None = None
        try:
            while not self.closed:
                changed.clear()
                status = self.status(request.service)
                now = int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN) if status is None else status
                if now != told:
                    yield health_pb2.HealthCheckResponse(status=now)
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
