"""The gRPC side of a model server that has none, or whose gRPC address is not known: the REST door works without it.

Rule 1: the gRPC door says so to its callers, and readiness is what the watch over HTTP says.
"""

from __future__ import annotations

import asyncio
from typing import Any

from guard.errors import UpstreamDown
from guard.manifest import ModelSpec
from guard.serve.grpc.metadata import Metadata
from guard.serve.grpc.upstream import Answer, Upstream
from guard.serve.grpc.upstream_watch import UpstreamWatch

NO_ADDRESS = "the guard knows no gRPC address of the model server (upstream); its REST door is open"


class AbsentChannels:
    """The channels to a server that is not there."""

    async def renew(self) -> str | None:
        """Replace nothing: there is no connection that needs a certificate."""
        return None


class AbsentUpstream(Upstream):
    """A model server that no gRPC call reaches."""

    def __init__(self) -> None:
        self.channels: Any = AbsentChannels()
        self.address = ""
        self.timeout_s = 0.0
        self.doubt = asyncio.Event()

    async def unary(self, method: str, request: bytes, metadata: Metadata, timeout_s: float | None) -> Answer:  # noqa: ARG002
        raise UpstreamDown(NO_ADDRESS)

    def stream(self, method: str, metadata: Metadata, timeout_s: float | None) -> Any:  # noqa: ARG002
        raise UpstreamDown(NO_ADDRESS)


class AbsentWatch(UpstreamWatch):
    """A watch that has nothing to watch, and calls every model ready as far as gRPC goes."""

    async def server_reason(self) -> str | None:
        return None

    async def model_reason(self, model: ModelSpec) -> str | UpstreamDown | None:  # noqa: ARG002
        return None

    async def pause(self, *, ready: bool) -> None:  # noqa: ARG002
        await self.upstream.doubt.wait()  # a reload: other models
