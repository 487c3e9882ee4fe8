"""A listener of HTTP/1.1: uvicorn's protocol, with bounds on time and number that it does not have itself.

Rule 1: what waits for a client waits for `read_timeout_s` at most: for a request's head, for the rest of a body whose
        answer is sent already, and for an answer to be taken.
Rule 2: a new connection beyond the limit takes the place of the one that has been idle for longest; where none is
        idle, it is closed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from guard.config import ServeConfig
from guard.serve.exposition import listen
from guard.serve.neighbours import port_error
from guard.target import split_address

MAX_HEAD_BYTES = 64 * 1024  # of the request line and all headers
AGE_SPREAD = 0.1  # of a connection's age: clients that came together do not leave together
CLOSE = (b"connection", b"close")
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """The protocol of one connection: uvicorn's, with bounds."""

    read_timeout_s: float
    max_connections: int
    max_age_s: float | None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.timer: asyncio.TimerHandle | None = None
        self.unsent_bytes = 0  # of an answer, when the timer was set
        self.idle_since = time.monotonic()
        self.old_at = self.idle_since + (self.max_age_s or 0.0) * (1 + random.uniform(-AGE_SPREAD, AGE_SPREAD))
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            idle = [one for one in self.connections if isinstance(one, BoundedProtocol) and one.is_idle]
            (min(idle, key=lambda one: one.idle_since) if idle else self).transport.abort()
        self.set_timer()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way; a head that has not come whole is none yet."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.is_idle:
            self.set_timer()
        else:
            self.unset_timer()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and self.max_age_s is not None and time.monotonic() > self.old_at:
            self.cycle.default_headers = [CLOSE]

    def on_response_complete(self) -> None:
        self.idle_since = time.monotonic()
        super().on_response_complete()
        if self.is_idle and (self.conn.their_state is h11.SEND_BODY or self.transport.get_write_buffer_size()):
            self.set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.unset_timer()
        super().connection_lost(exc)

    def set_timer(self) -> None:
        """Begin to wait for the client, unless that has begun already."""
        if self.timer is None:
            self.unsent_bytes = self.transport.get_write_buffer_size()
            self.timer = self.loop.call_later(self.read_timeout_s, self.time_out)

    def unset_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def time_out(self) -> None:
        """Close the connection, whose client has had its time."""
        self.timer = None
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            if unsent < self.unsent_bytes:
                self.set_timer()
            else:
                self.transport.abort()
        elif self.conn.our_state is h11.IDLE:
            self.transport.write(TIMED_OUT)
            self.transport.close()
        else:
            self.transport.close()


class HttpListener:
    """A socket that is listened on, and the connections that came by it."""

    def __init__(self, server: uvicorn.Server, address: str) -> None:
        self.server = server
        self.address = address

    def close_connections_soon(self) -> None:
        """Have every connection closed by the end of what is under way on it."""
        self.server.server_state.default_headers = [CLOSE]
        for connection in list(self.server.server_state.connections):
            if isinstance(connection, BoundedProtocol):
                if connection.cycle is not None:
                    connection.cycle.default_headers = [CLOSE]
                if connection.is_idle and connection.conn.their_state is h11.IDLE:
                    connection.timeout_keep_alive_handler()


@asynccontextmanager
async def listening(address: str, app: ASGIApp, config: ServeConfig) -> AsyncIterator[HttpListener]:
    """Serve `app` within the block; at its end, `grace_s` are left to what is under way.

    Raises:
        PortError: the address cannot be listened on.
    """
    host, port = split_address(address) or ("", 0)
    try:
        socket = listen(host.strip("[]"), port)
    except OSError as error:
        raise port_error(address, error) from error
    try:
        settings = uvicorn.Config(
            app,
            http=bounded(config),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=max(1, int(config.keepalive_s)),
            timeout_graceful_shutdown=int(config.grace_s),
        )
        settings.load()
        server = uvicorn.Server(settings)
        server.lifespan = settings.lifespan_class(settings)
        await server.startup(sockets=[socket])
        try:
            yield HttpListener(server, f"{host}:{socket.getsockname()[1]}")
        finally:
            await server.shutdown(sockets=[socket])
    finally:
        socket.close()


def bounded(config: ServeConfig) -> type[BoundedProtocol]:
    """The protocol with an operator's bounds, since uvicorn takes a class."""
    bounds: dict[str, Any] = {
        "read_timeout_s": config.read_timeout_s,
        "max_connections": config.max_connections,
        "max_age_s": config.max_connection_age_s,
    }
    return type("ConfiguredProtocol", (BoundedProtocol,), bounds)
