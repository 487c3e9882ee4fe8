"""A listener of HTTP/1.1: uvicorn's protocol, with bounds on time and number that it does not have itself.

Rule 1: what waits for a client waits for `read_timeout_s` at most: for a request's head, for the rest of a body whose
        answer is sent already, and for an answer to be taken.
Rule 2: a new connection beyond the limit takes the place of the one that has been idle for longest; where none is
        idle, it is closed.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from guard.config import ServeConfig
from guard.serve.exposition import listen
from guard.serve.neighbours import port_error
from guard.serve.rest.tls import PEER, peer_of
from guard.target import split_address

MAX_HEAD_BYTES = 64 * 1024  # of the request line and all headers
AGE_SPREAD_SHARE = 0.1  # of a connection's age: clients that came together do not leave together
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
        self.old_at = self.idle_since + (self.max_age_s or 0.0) * (
            1 + random.uniform(-AGE_SPREAD_SHARE, AGE_SPREAD_SHARE)
        )
        super().connection_made(transport)
        self.app_state = {**self.app_state, PEER: peer_of(transport)}
        if len(self.connections) > self.max_connections:
            idle = [one for one in self.connections if isinstance(one, BoundedProtocol) and one.is_idle]
            (min(idle, key=lambda one: one.idle_since) if idle else self).transport.abort()
        self.set_timer()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way; a head that has not come whole is none yet."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    @property
    def is_asking(self) -> bool:
        """Whether a part of a request's head is here."""
        return bool(self.conn.trailing_data[0])

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.is_idle:
            self.set_timer()
        else:
            self.unset_timer()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and (self.is_old or self.is_ambiguous):
            self.cycle.default_headers = [CLOSE]

    @property
    def is_old(self) -> bool:
        return self.max_age_s is not None and time.monotonic() > self.old_at

    @property
    def is_ambiguous(self) -> bool:
        """Whether the request tells twice where its body ends, so that what follows it may be a part of it."""
        return {b"content-length", b"transfer-encoding"} <= {name for name, _ in self.headers}

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
        self.tells = True
        self.is_closed = False  # to further connections
        self.told: set[Any] = set()  # clients that were told to connect elsewhere, by their addresses

    @property
    def open(self) -> list[BoundedProtocol]:
        """The connections that are open."""
        return [one for one in self.server.server_state.connections if isinstance(one, BoundedProtocol)]

    def connections(self) -> int:
        """The number of open connections."""
        return len(self.open)

    def tell_clients(self, busy_ports: Container[int] = ()) -> int:  # noqa: ARG002  HTTP/1.1 tells behind an answer
        """Tell the clients to connect again: behind their next answers, and the idle once no others are let in."""
        self.server.server_state.default_headers = [CLOSE]
        for connection in self.open:
            self.told.add(connection.client)
            if not connection.is_idle:
                connection.cycle.default_headers = [CLOSE]
            elif self.is_closed and not connection.is_asking:
                connection.timeout_keep_alive_handler()
        return 0

    def close_entrance(self) -> None:
        """Accept no further connections; those that are open stay."""
        self.is_closed = True
        for one in self.server.servers:
            one.close()

    async def stop(self) -> None:
        """Close what has no request under way; `listening` waits for the rest at its end."""
        self.close_entrance()
        self.tell_clients()


@asynccontextmanager
async def listening(
    address: str, app: ASGIApp, config: ServeConfig, tls: ssl.SSLContext | None = None
) -> AsyncIterator[HttpListener]:
    """Serve `app` within the block; at its end, `grace_s` are left to what is under way.

    A request's state holds the `Peer` that it came from, as `PEER`.

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
        settings.ssl = tls
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
