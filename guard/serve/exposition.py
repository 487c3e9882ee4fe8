"""Metrics and health over HTTP, from one thread of their own: neither a scraper nor a probe holds up a request.

    GET /metrics                     Prometheus
    GET /livez, /v2/health/live      200 while the guard lives, else 503 and the reason
    GET /readyz, /v2/health/ready    200 while the guard is ready, else 503 and the reason

How it works. The thread runs an event loop of its own. A connection carries one request, is answered and closed. One
new connection is accepted a turn of the loop, and read from within that turn, so a probe whose request came with its
connection is answered before another connection can take its place.

Rule 1: one thread and MAX_CONNECTIONS connections, whatever clients do; none lives longer than CONNECTION_TIMEOUT_S.
Rule 2: a new connection is never refused. If there are too many, the oldest is closed: an idle one, unless more than
        half of them are being answered, which takes that long only where clients do not read.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from prometheus_client import CollectorRegistry, make_wsgi_app

from guard.serve.neighbours import port_error
from guard.target import split_address

MAX_CONNECTIONS = 32
CONNECTION_TIMEOUT_S = 5.0  # from accepted to closed
MAX_HEAD_BYTES = 8192  # of the request line and all headers
MAX_BACKLOG_CONNECTIONS = 1024  # connections that the kernel holds until they are accepted
MAX_DISCARDED_READS = 16  # of a request's body, which is ignored
READ_BYTES = 4096
ACCEPT_PAUSE_S = 0.05  # after a failed accept, e.g. when no file descriptor is left

END_OF_HEAD = b"\r\n\r\n"
REQUEST_LINE = re.compile(r"(\S+) (\S+) HTTP/1\.\d")
UNCOMPARABLE_VERSION = re.compile(r"version=(?!\d{1,4}(\.\d{1,4})*\s*(;|$))", re.ASCII)

Check = Callable[[], str | None]  # None when all is well, else the reason why not
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ProbeRequest:
    """The parsed head of an HTTP request; `headers` has names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Response:
    """A status, a body, and the headers that are not the same for every response."""

    status: HTTPStatus
    body: bytes
    headers: Headers

    def encode(self, *, body: bool) -> bytes:
        """Serialize the response; without `body` for the answer to HEAD, which tells the length all the same."""
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            *(f"{name}: {text}" for name, text in self.headers),
        ]
        lines += [f"Content-Length: {len(self.body)}", f"Date: {formatdate(usegmt=True)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + (self.body if body else b"")


Page = Callable[[ProbeRequest], Response]


@contextmanager
def exposing(address: str, registry: CollectorRegistry, *, live: Check, ready: Check) -> Iterator[str]:
    """Serve metrics and health on `address` within the block; yields the address really bound.

    `live` and `ready` return None when all is well, else the reason. They are called in another thread: they only read.

    Raises:
        PortError: the address cannot be listened on.
    """
    host, port = split_address(address) or ("", 0)
    try:
        listener = listen(host.strip("[]"), port)
    except OSError as error:
        raise port_error(address, error) from error
    loop = asyncio.SelectorEventLoop()
    serving = loop.create_task(serve(listener, site(registry, live=live, ready=ready)))

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)

    thread = threading.Thread(target=run, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"{host}:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join()
        loop.close()
        listener.close()


def site(registry: CollectorRegistry, *, live: Check, ready: Check) -> dict[str, Page]:
    """The page behind each path of the metrics port."""
    living, readiness = health(live), health(ready)
    return {
        "/metrics": metrics(registry),
        "/livez": living,
        "/v2/health/live": living,
        "/readyz": readiness,
        "/v2/health/ready": readiness,
    }


def health(check: Check) -> Page:
    """A page that is 200 while all is well, else 503 and the reason."""

    def page(_: ProbeRequest) -> Response:
        reason = check()
        return line(HTTPStatus.OK, "ok") if reason is None else line(HTTPStatus.SERVICE_UNAVAILABLE, reason)

    return page


def metrics(registry: CollectorRegistry) -> Page:
    """The registry's metrics, in the format and the compression that the client prefers."""
    library = make_wsgi_app(registry)

    def page(request: ProbeRequest) -> Response:
        headers: list[tuple[str, str]] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
            "HTTP_ACCEPT": comparable(request.headers.get("accept", "")),
            "HTTP_ACCEPT_ENCODING": request.headers.get("accept-encoding", ""),
        }
        body = b"".join(library(environ, lambda _, given: headers.extend(given)))
        return Response(HTTPStatus.OK, body, tuple(headers))

    return page


def comparable(accept: str) -> str:
    """Drop the media ranges of an Accept header that have a version such as `1.x`, over which the library raises."""
    return ",".join(part for part in accept.split(",") if not UNCOMPARABLE_VERSION.search(part))


def line(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Response:
    """Build a response of one line of plain text."""
    body = (" ".join(text.split()) + "\n").encode("utf-8", "replace")
    return Response(status, body, (("Content-Type", "text/plain; charset=utf-8"), *headers))


def answer(head: bytes, pages: Mapping[str, Page]) -> bytes:
    """The response, as bytes, to a request's head: all bytes up to the empty line, or more than MAX_HEAD_BYTES."""
    end = head.find(END_OF_HEAD, 0, MAX_HEAD_BYTES)
    if end < 0:
        return line(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEAD_BYTES} bytes").encode(body=True)
    request = parse(head[:end])
    if request is None:
        return line(HTTPStatus.BAD_REQUEST, "not a request of HTTP/1").encode(body=True)
    return respond(request, pages).encode(body=request.method != "HEAD")


def respond(request: ProbeRequest, pages: Mapping[str, Page]) -> Response:
    page = pages.get(request.path)
    if page is None:
        return line(HTTPStatus.NOT_FOUND, f"not here; there is {', '.join(pages)}")
    if request.method not in ("GET", "HEAD"):
        return line(HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD", ("Allow", "GET, HEAD"))
    try:
        return page(request)
    except Exception:  # a collector or a check raises what it likes
        logging.getLogger(__name__).exception("no answer to %s", request.path)
        return line(HTTPStatus.INTERNAL_SERVER_ERROR, "it failed; the log says why")


def parse(head: bytes) -> ProbeRequest | None:
    """Parse a head without its last empty line; None if it is not one of HTTP/1."""
    first, *rest = head.decode("latin-1").split("\r\n")
    found = REQUEST_LINE.fullmatch(first)
    if found is None:
        return None
    headers: dict[str, str] = {}
    for text in rest:
        name, colon, value = text.partition(":")
        if not colon or set("\r\n\0") & set(text):  # a lone line feed could come back as a header of the response
            return None
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    method, target = found.groups()
    path, _, query = target.partition("?")
    return ProbeRequest(method, path, query, headers)


async def serve(listener: socket.socket, pages: Mapping[str, Page]) -> None:
    """Accept connections and answer their requests until cancelled."""
    loop, connections = asyncio.get_running_loop(), Connections(pages)
    try:
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(ACCEPT_PAUSE_S)
            else:
                connections.admit(connection)
                await asyncio.sleep(0)  # it is read from before there is another
    finally:
        await connections.close()


class Connections:
    """The open connections, each with the task that answers it."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self.pages = pages
        self.tasks: dict[socket.socket, asyncio.Task[None]] = {}
        self.idle: dict[socket.socket, None] = {}  # oldest first; waiting for a request, or for the client to close
        self.busy: dict[socket.socket, None] = {}  # oldest first; being answered

    def admit(self, connection: socket.socket) -> None:
        if len(self.idle) + len(self.busy) >= MAX_CONNECTIONS:
            more = max(self.idle, self.busy, key=len)
            oldest = next(iter(more))
            del more[oldest]
            self.tasks[oldest].cancel()
        self.idle[connection] = None
        self.tasks[connection] = asyncio.create_task(self.converse(connection))
        self.tasks[connection].add_done_callback(lambda _: self.forget(connection))

    async def converse(self, connection: socket.socket) -> None:
        """Read one request, answer it, and wait for the client to close: closing first could cost it the answer."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):  # the client left, or its time is up
            async with asyncio.timeout(CONNECTION_TIMEOUT_S):
                head = await read_head(connection)
                del self.idle[connection]
                self.busy[connection] = None
                await loop.sock_sendall(connection, answer(head, self.pages))
                del self.busy[connection]
                self.idle[connection] = None
                connection.shutdown(socket.SHUT_WR)
                for _ in range(MAX_DISCARDED_READS):
                    if not await loop.sock_recv(connection, READ_BYTES):
                        break

    def forget(self, connection: socket.socket) -> None:
        for place in (self.tasks, self.idle, self.busy):
            place.pop(connection, None)
        connection.close()

    async def close(self) -> None:
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_head(connection: socket.socket) -> bytes:
    """Read all bytes up to an empty line, or more than MAX_HEAD_BYTES. Raises OSError if the client leaves before."""
    head = bytearray()
    while END_OF_HEAD not in head and len(head) <= MAX_HEAD_BYTES:
        received = await asyncio.get_running_loop().sock_recv(connection, READ_BYTES)
        if not received:
            raise ConnectionAbortedError
        head += received
    return bytes(head)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket that never blocks. Raises OSError.

    Its connections send at once: asyncio sees to that only for a socket that was made with the protocol's number, and
    an answer in two parts would wait 40 ms for the client to acknowledge the first.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, proto=socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(MAX_BACKLOG_CONNECTIONS)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
