"""The guarded model server as the guard sees it over HTTP: requests and answers go through as bytes.

Rule 1: the upstream gets the bytes that were handed in, behind a request line and headers of our own making: nothing
        that a client wrote decides where its body ends.
Rule 2: nothing is asked twice and no redirection is followed: what an answer means is the client's to say.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from guard.config import ServeConfig
from guard.errors import UpstreamDown
from guard.serve.rest.answer import RestAnswer
from guard.serve.rest.headers import Headers, encoded, end_to_end, text_headers

IDLE_CONNECTION_S = 3.0  # kept for the next request; less than the 5 s after which uvicorn closes its own
MAX_IDLE_CONNECTIONS = 64


class RestUpstream:
    """A client of the model server, which lasts as long as `open`."""

    def __init__(self, client: httpx.AsyncClient, config: ServeConfig, *, max_bytes: int) -> None:
        self.client = client
        self.base = config.rest_upstream.rstrip("/")
        self.authority = config.upstream_authority
        self.timeout_s = config.upstream_timeout_s
        self.max_bytes = max_bytes
        self.versions: dict[str, tuple[str, ...]] = {}  # by model, as last told; absent: not yet
        self.doubt = asyncio.Event()
        self.where = f"the model server at {self.base}"

    @staticmethod
    @asynccontextmanager
    async def open(
        config: ServeConfig, *, max_bytes: int, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[RestUpstream]:
        """Open a client, which connects when it is first used; without `tls` the system's certificates count."""
        transport = httpx.AsyncHTTPTransport(
            verify=ssl.create_default_context() if tls is None else tls,
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=MAX_IDLE_CONNECTIONS,
                keepalive_expiry=IDLE_CONNECTION_S,
            ),
            trust_env=False,
            socket_options=keepalive(config.upstream_keepalive_s),
        )
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            yield RestUpstream(client, config, max_bytes=max_bytes)

    async def ask(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> RestAnswer:
        """Make a request, and read the whole answer, whatever its status.

        Raises:
            UpstreamDown: there was no answer, or none of HTTP, or one too large.
        """
        extensions: dict[str, Any] = {
            "timeout": {"connect": self.timeout_s, "read": None, "write": None, "pool": None},
            **({} if self.authority is None else {"sni_hostname": self.authority.rpartition(":")[0] or self.authority}),
        }
        own = () if self.authority is None else (("host", self.authority),)
        request = httpx.Request(
            method,
            f"{self.base}{path}",
            headers=encoded((*own, *headers)),
            content=body if method not in ("GET", "HEAD") or body else None,
            extensions=extensions,
        )
        try:
            response = await self.client.send(request, stream=True, follow_redirects=False)
            try:
                found = await self.read(response)
            finally:
                await response.aclose()
        except (httpx.TransportError, httpx.InvalidURL) as error:
            self.doubt.set()
            raise UpstreamDown(complaint(error)) from error
        return RestAnswer(response.status_code, end_to_end(text_headers(response.headers.raw)), found)

    async def read(self, response: httpx.Response) -> bytes:
        parts, size = [], 0
        async for part in response.aiter_raw():
            parts.append(part)
            size += len(part)
            if size > self.max_bytes:
                raise UpstreamDown(f"the model server's answer has more than {self.max_bytes} bytes")
        return b"".join(parts)


def complaint(error: Exception) -> str:
    """The line for the client about a connection that failed, which tells no address."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "the model server behind the guard cannot be reached; nothing answered this request"
    return "the model server behind the guard gave no answer of HTTP; nothing answered this request"


def keepalive(idle_s: float | None) -> list[tuple[int, int, int]]:
    """Options by which the kernel notices that the other end is gone, asked after so much silence; None: never."""
    if idle_s is None:
        return []
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(idle_s))))
    return options
