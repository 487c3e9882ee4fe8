"""The guarded model server as the guard sees it over HTTP: requests go through as bytes, its readiness is watched.

Rule 1: the upstream gets the bytes that were handed in, behind a request line and headers of our own making: nothing
        that a client wrote decides where its body ends.
Rule 2: nothing is asked twice and no redirection is followed: what an answer means is the client's to say.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import httpx

from guard.config import ServeConfig
from guard.errors import ConfigError, UpstreamDown
from guard.manifest import ModelSpec
from guard.serve.grpc.upstream_watch import mismatch
from guard.serve.grpc.wire.inference_pb2 import ModelMetadataResponse
from guard.serve.rest.answer import RestAnswer
from guard.serve.rest.headers import Headers, encoded, end_to_end, text_headers

POLL_READY_S = 1.0
POLL_DOWN_S = 0.2
IDLE_CONNECTION_S = 3.0  # kept for the next request; less than the 5 s after which uvicorn closes its own
MAX_IDLE_CONNECTIONS = 64
MAX_PROBE_BYTES = 2**20


def model_path(name: str, version: str, verb: str = "") -> str:
    """The path of a model, or of a verb of its: `/v2/models/NAME/versions/VERSION/infer`."""
    of_version = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(name, safe='')}{of_version}{f'/{verb}' if verb else ''}"


class RestUpstream:
    """A client of the model server, which lasts as long as `open`."""

    def __init__(self, client: httpx.AsyncClient, config: ServeConfig, model: ModelSpec, *, max_bytes: int) -> None:
        self.client = client
        self.base = config.rest_upstream.rstrip("/")
        self.authority = config.upstream_authority
        self.model = model
        self.timeout_s = config.upstream_timeout_s
        self.max_bytes = max_bytes
        self.versions: tuple[str, ...] | None = None  # of the model, as last told; None: not yet, (): it has none
        self.doubt = asyncio.Event()

    @staticmethod
    @asynccontextmanager
    async def open(config: ServeConfig, model: ModelSpec, *, max_bytes: int) -> AsyncIterator[RestUpstream]:
        """Open a client, which connects when it is first used.

        Raises:
            ConfigError: `upstream_ca` cannot be read.
        """
        transport = httpx.AsyncHTTPTransport(
            verify=trust(config),
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=MAX_IDLE_CONNECTIONS,
                keepalive_expiry=IDLE_CONNECTION_S,
            ),
            trust_env=False,
            socket_options=keepalive(config.upstream_keepalive_s),
        )
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            yield RestUpstream(client, config, model, max_bytes=max_bytes)

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

    async def watch(self, say: Callable[[str | None], None]) -> None:
        """Check for ever, and pass to `say` after each check why the upstream is not ready (None: it is)."""
        while True:
            self.doubt.clear()
            reason = await self.check()
            say(reason)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_READY_S if reason is None else POLL_DOWN_S):
                    await (self.doubt.wait() if reason is None else asyncio.Event().wait())

    async def check(self) -> str | None:
        """The reason why the upstream is not ready for this bundle's model; None when it is."""
        where = f"the model server at {self.base}"
        name, version = self.model.name, self.model.version
        try:
            async with asyncio.timeout(self.timeout_s):
                for path, what in (("/v2/health/ready", "it"), (model_path(name, version, "ready"), f"model {name!r}")):
                    if not (answer := await self.ask("GET", path)).ok:
                        return f"{where} says that {what} is not ready (HTTP status {answer.status})"
                answer = await self.ask("GET", model_path(name, version))
            if not answer.ok:
                return f"{where} answered about model {name!r}: HTTP status {answer.status}"
            metadata = metadata_of(answer.body)
        except TimeoutError:
            return f"{where} did not answer within {self.timeout_s:g} s"
        except UpstreamDown:
            return f"{where} cannot be reached"
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return f"{where} does not answer in the Open Inference Protocol"
        self.versions = tuple(metadata.versions)
        return mismatch(metadata, self.model)


def metadata_of(body: bytes) -> ModelMetadataResponse:
    """A model's metadata, which REST and gRPC name alike. Raises as a JSON of another form makes it."""
    document = json.loads(body[:MAX_PROBE_BYTES])
    found = ModelMetadataResponse(
        name=document.get("name", ""), versions=[str(version) for version in document.get("versions") or ()]
    )
    for given, tensors in (("inputs", found.inputs), ("outputs", found.outputs)):
        for tensor in document.get(given) or ():
            tensors.add(name=tensor["name"], datatype=tensor.get("datatype", ""), shape=tensor.get("shape") or ())
    return found


def complaint(error: Exception) -> str:
    """The line for the client about a connection that failed, which tells no address."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "the model server behind the guard cannot be reached; nothing answered this request"
    return "the model server behind the guard gave no answer of HTTP; nothing answered this request"


def trust(config: ServeConfig) -> ssl.SSLContext:
    """The certificates that the model server's own must lead to. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=config.upstream_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"upstream_ca = {config.upstream_ca!r} cannot be read as certificates: {error}") from error


def keepalive(idle_s: float | None) -> list[tuple[int, int, int]]:
    """Options by which the kernel notices that the other end is gone, asked after so much silence; None: never."""
    if idle_s is None:
        return []
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(idle_s))))
    return options
