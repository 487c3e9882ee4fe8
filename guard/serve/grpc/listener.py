"""A gRPC server on one address, with bounded connections, that is opened again should it ever close by itself.

Rule 1: readiness tells the truth about acceptance: `changed` is called when calls are not accepted, and when they are
        again.
Rule 2: a listener that stops by itself is opened again on the same port; calls in flight on the old one finish.
Rule 3: the end of a listener is no `CANCELLED` to any client: those still there see their connection close.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from guard.errors import PortError
from guard.serve.grpc.acceptor import Acceptor, WatchedServer, is_known
from guard.serve.grpc.connection_limits import ConnectionLimits
from guard.serve.grpc.credentials import Credentials
from guard.serve.grpc.gatekeeper import Gate, Wall
from guard.serve.grpc.goaway import send_goaway
from guard.serve.grpc.unix_socket import private_socket
from guard.serve.neighbours import port_error
from guard.target import socket_path, split_address

WINDOW_BYTES = 64 * 1024  # what the core holds of a call that is not read yet
METADATA_BYTES = 32 * 1024  # of a call's headers; gRPC's servers take 16 KiB
MAX_PENDING_CALLS = 1_000_000
REOPEN_POLL_S = 0.02
REPLACED_LISTENER_GRACE_S = 3600.0  # the grace of calls on a listener that was replaced
LAST_ANSWERS_S = 0.05  # for what was answered to leave before connections close

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Methods: TypeAlias = "Mapping[str, Handler | Wall]"
Changed = Callable[[str | None], None]


def silent(reason: str | None) -> None:
    """Ignore a change, as long as there is no receiver for it."""


class Listener:
    """A gRPC server on one address, from `open` to `stop`; see `listening`."""

    def __init__(
        self,
        address: str,
        methods: Methods,
        other: Handler | Wall,
        *,
        options: Sequence[tuple[str, Any]],
        gates: Mapping[str, Gate] | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.address = address
        self.credentials = credentials
        self.methods = methods
        self.other = other
        self.options = options
        self.gates = gates or {}
        self.reopened = 0  # how often it had to be opened again
        self.accepts_by_itself = is_known()  # or leaves it to the library
        self.changed: Changed = silent
        self.server: WatchedServer | None = None
        self.background: set[asyncio.Task[None]] = set()
        self.stopped = False
        self.told: set[Any] = set()  # clients that were told to connect elsewhere, by their addresses

    async def open(self) -> None:
        """Start a server on the address. Raises PortError."""
        kind = Acceptor if self.accepts_by_itself else WatchedServer
        server = kind(self.options, self.lost)
        server.serve(self.methods, self.other, self.gates)
        tls = None if self.credentials is None else self.credentials()
        if (path := socket_path(self.address)) is not None:
            bind_socket(server, self.address, path, tls)
            self.port: int | str = path
        else:
            self.port = bound(server, self.address, tls)
            self.address = f"{self.address.rpartition(':')[0]}:{self.port}"
        await server.start()
        self.server = server

    def lost(self, error: BaseException) -> None:
        """Report that the server accepts no calls any more, unless it was stopped, and open it again."""
        if not self.stopped:
            self.changed(f"the listener on {self.address} has closed by itself ({error!r}); it is being opened again")
            self.spawn(self.reopen())

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def reopen(self) -> None:
        if self.server is not None:
            self.spawn(shut(self.server, None))
        while not self.stopped:
            try:
                await self.open()
            except PortError:  # the old one has not let go yet
                await asyncio.sleep(REOPEN_POLL_S)
                continue
            self.reopened += 1
            self.changed(None)
            return

    @property
    def tells(self) -> bool:
        """Whether clients can be told to connect again: nothing can be written within TLS."""
        return self.credentials is None and isinstance(self.port, int)

    def tell_clients(self, busy_ports: Container[int] = ()) -> int:
        """Tell the clients of quiet connections to connect again (GOAWAY), and return how many are still to be told.

        Connections of clients with one of `busy_ports` are not. A client is told once; where `tells` is false, none is.
        """
        untold = 0
        if not self.tells:
            return untold
        for connection in sockets(self.port, listening=False):
            with connection, suppress(OSError):  # it has ended
                client = connection.getpeername()
                if client in self.told:
                    continue
                if client[1] not in busy_ports and send_goaway(connection):
                    self.told.add(client)
                else:
                    untold += 1
        return untold

    def connections(self) -> int:
        """The number of open connections."""
        return count_of(sockets(self.port, listening=False))

    def close_entrance(self) -> None:
        """Accept no further connections; those that are open stay."""
        self.stopped = True
        for task in tuple(self.background):
            task.cancel()
        for entrance in sockets(self.port, listening=True):
            with entrance, suppress(OSError):
                entrance.shutdown(socket.SHUT_RDWR)

    async def stop(self) -> None:
        """Close without a CANCELLED to any client: connections end first, and their calls with them."""
        self.stopped = True
        for task in tuple(self.background):
            task.cancel()
        if self.server is not None:
            if any_there(self.port):  # else no client can be sent away, and gRPC's core need not complain
                self.close_entrance()  # or they come in again at once
            await asyncio.sleep(LAST_ANSWERS_S)
            for connection in sockets(self.port, listening=False):
                with connection, suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            await shut(self.server, 0)


async def shut(server: WatchedServer, grace_s: float | None) -> None:
    """Stop a server, whether its acceptance failed or not; no grace means `REPLACED_LISTENER_GRACE_S`."""
    grace = REPLACED_LISTENER_GRACE_S if grace_s is None else grace_s
    with suppress(Exception):  # what ended the acceptance is raised once more, and was reported already
        await server.shutdown(grace)
    with suppress(Exception):
        await server.shutdown(grace)


@asynccontextmanager
async def listening(
    address: str,
    methods: Methods,
    other: Handler | Wall,
    *,
    max_message_bytes: int,
    limits: ConnectionLimits,
    gates: Mapping[str, Gate] | None = None,
    credentials: Credentials | None = None,
) -> AsyncIterator[Listener]:
    """Serve `methods` on `address` within the block, and `other` for all other paths.

    A gate may refuse calls of its path before they are handled; where the installed grpcio has no room for gates, it is
    not asked. `credentials` makes those for TLS, for each server anew.

    Raises:
        PortError: the address cannot be listened on.
    """
    options = [
        ("grpc.so_reuseport", 0),  # on by default, and then a forgotten second guard silently shares the port
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),  # what an upstream answers is bounded where it comes in
        ("grpc.per_message_decompression", 0),  # `Door` unpacks
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        *limits.options(),
        (
            "grpc.server.max_pending_requests",
            MAX_PENDING_CALLS,
        ),  # by default 1,000, and calls beyond that get CANCELLED
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
        # The core would widen windows by what it measures: 450 MiB of unread bodies on eight connections, 40 without.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ]
    listener = Listener(address, methods, other, options=options, gates=gates, credentials=credentials)
    await listener.open()
    try:
        yield listener
    finally:
        await listener.stop()


def sockets(port: int | str, *, listening: bool) -> Iterator[socket.socket]:
    """Yield this process' sockets on one of its ports, those that listen or the connections, as copies to be closed.

    The port of a unix socket is its path.

    Without /proc there are none.
    """
    for entry in descriptors():
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(entry).st_mode):
                continue
            found = socket.socket(fileno=os.dup(entry))
            if is_on(found, port, listening=listening):
                yield found
            else:
                found.close()


def any_there(port: int | str) -> bool:
    """Whether there are connections to the port."""
    return count_of(sockets(port, listening=False)) > 0


def count_of(found: Iterator[socket.socket]) -> int:
    """Count sockets, and close them."""
    count = 0
    for one in found:
        one.close()
        count += 1
    return count


def descriptors() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return []


def is_on(found: socket.socket, port: int | str, *, listening: bool) -> bool:
    families = (socket.AF_UNIX,) if isinstance(port, str) else (socket.AF_INET, socket.AF_INET6)
    if found.family not in families or found.type != socket.SOCK_STREAM:
        return False
    name = found.getsockname()
    if (name if isinstance(port, str) else name[1]) != port:
        return False
    accepts = bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return accepts if listening else not accepts and is_connected(found)


def is_connected(found: socket.socket) -> bool:
    """Whether a socket has another end: an entrance that was shut down neither listens nor has one."""
    try:
        found.getpeername()
    except OSError:
        return False
    return True


def bind_socket(server: WatchedServer, address: str, path: str, tls: grpc.ServerCredentials | None) -> None:
    """Bind a server to a unix socket that is for this user alone. Raises PortError."""
    try:
        with private_socket(path):
            server.listen(address, tls)
    except (OSError, RuntimeError) as error:
        raise port_error(address, error) from error


def bound(server: WatchedServer, address: str, tls: grpc.ServerCredentials | None) -> int:
    """Bind a server to an address and return the port. Raises PortError."""
    try:
        try_bind(address)
        return server.listen(address, tls)
    except (OSError, RuntimeError) as error:
        raise port_error(address, error) from error


def try_bind(address: str) -> None:
    """Bind and release an address: a failure says why, without gRPC's own lines on standard error. Raises OSError."""
    host, port = split_address(address) or ("", 0)
    family, kind, protocol, _, target = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(target)
