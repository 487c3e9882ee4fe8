"""The metrics port tells what holds, and no client keeps another from hearing it."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from guard.errors import PortError
from guard.serve import exposition
from guard.serve.event_loop import EventLoop
from guard.serve.exposition import MAX_CONNECTIONS, MAX_HEAD_BYTES, exposing, listen

POLL_S = 0.02
PATIENCE_S = 10.0
CROWD = 200
TRICKLERS = 20
LARGE = "x" * 2**24  # more than the kernel takes for a client that does not read


@dataclass
class Port:
    """A metrics port, and what its checks say at the moment."""

    address: str = ""
    reasons: dict[str, str | None] = field(default_factory=lambda: {"live": None, "ready": None})

    def check(self, name: str) -> Callable[[], str | None]:
        return lambda: self.reasons[name]

    def ask(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE_S)
        try:
            connection.request(method, target, body, {name.replace("_", "-"): text for name, text in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def status(self, target: str) -> int:
        return self.ask("GET", target)[0]

    def connect(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S)

    def exchange(self, sent: bytes) -> bytes:
        """Everything that comes back for these bytes."""
        with self.connect() as connection:
            connection.sendall(sent)
            return received(connection)


def received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(2**16), b""))


def loopbacks() -> list[str]:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "[::1]"]


def registry_of(*names: str) -> CollectorRegistry:
    registry = CollectorRegistry()
    for name in names:
        Gauge(name, "x", registry=registry).set(7)
    return registry


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    with exposing("127.0.0.1:0", registry_of("a", "b"), live=port.check("live"), ready=port.check("ready")) as bound:
        port.address = bound
        yield port


@pytest.fixture
def large() -> Iterator[Port]:
    """A port whose metrics are more than any socket buffer holds."""
    registry, port = CollectorRegistry(), Port()
    Gauge("large", LARGE, registry=registry)
    with exposing("127.0.0.1:0", registry, live=port.check("live"), ready=port.check("ready")) as bound:
        port.address = bound
        yield port


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(POLL_S)


def descriptors() -> int:
    """How many file descriptors this process, which is the port and its clients, has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("host", loopbacks())
def test_each_path_has_its_page(host: str) -> None:
    port = Port()
    with exposing(f"{host}:0", registry_of("a"), live=port.check("live"), ready=port.check("ready")) as port.address:
        assert port.address.startswith(f"{host}:")
        for path in ("/livez", "/v2/health/live", "/readyz", "/v2/health/ready"):
            status, headers, body = port.ask("GET", path)
            assert (status, headers["Content-Type"], body) == (200, "text/plain; charset=utf-8", b"ok\n"), path
        status, _, body = port.ask("GET", "/metrics")
        assert status == 200
        assert b"\na 7.0\n" in body


@pytest.mark.parametrize(
    "target", ["/", "/metrics/", "/metricsx", "//metrics", "/x?/metrics", "/v2/health", "/LIVEZ", "/%6civez", "*"]
)
def test_there_is_nothing_else(port: Port, target: str) -> None:
    for method in ("GET", "POST"):
        status, headers, body = port.ask(method, target)
        assert (status, headers["Content-Type"]) == (404, "text/plain; charset=utf-8")
        assert body.count(b"\n") == 1


def test_answers_are_what_holds_at_that_moment(port: Port) -> None:
    port.reasons["ready"] = "the model server\nis not – reachable"
    for path in ("/readyz", "/v2/health/ready"):
        status, _, body = port.ask("GET", path)
        assert (status, body.decode()) == (503, "the model server is not – reachable\n")
    assert port.status("/livez") == 200
    port.reasons.update(live="the event loop stands still", ready=None)
    for path in ("/livez", "/v2/health/live"):
        status, _, body = port.ask("GET", path)
        assert (status, body) == (503, b"the event loop stands still\n")
    assert port.status("/readyz") == 200
    port.reasons["live"] = None
    assert port.status("/livez") == 200


@pytest.mark.parametrize("target", ["/livez?verbose", "/readyz?", "/metrics?x=y"])
def test_a_query_does_not_change_the_path(port: Port, target: str) -> None:
    assert port.status(target) == 200


@pytest.mark.parametrize("target", ["/metrics?name[]=b", "/metrics?name%5B%5D=b"])
def test_a_scrape_can_name_its_metrics(port: Port, target: str) -> None:
    assert port.ask("GET", target)[2].endswith(b"\nb 7.0\n")
    assert b"\na 7.0\n" not in port.ask("GET", target)[2]


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/nothing"])
def test_head_is_get_without_the_body(port: Port, path: str) -> None:
    def head_of(method: str) -> tuple[list[bytes], bytes]:
        head, _, body = port.exchange(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).partition(b"\r\n\r\n")
        return [text for text in head.split(b"\r\n") if not text.startswith(b"Date: ")], body

    of_get, body = head_of("GET")
    assert f"Content-Length: {len(body)}".encode() in of_get
    assert head_of("HEAD") == (of_get, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
@pytest.mark.parametrize("path", ["/metrics", "/livez"])
def test_other_methods_are_not_allowed(port: Port, method: str, path: str) -> None:
    status, headers, body = port.ask(method, path, b"x" * 20_000)
    assert (status, headers["Allow"], body) == (405, "GET, HEAD", b"GET or HEAD\n")


def test_a_body_may_come_after_its_answer(port: Port) -> None:
    with port.connect() as connection:
        connection.sendall(b"POST /metrics HTTP/1.1\r\nContent-Length: 5000\r\n\r\n")
        assert connection.recv(4) == b"HTTP"
        for _ in range(5):
            connection.sendall(b"x" * 1000)
        assert received(connection).endswith(b"GET or HEAD\n")


def test_a_scraper_gets_the_format_that_it_prefers(port: Port) -> None:
    _, headers, plain = port.ask("GET", "/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "Content-Encoding" not in headers
    _, headers, packed = port.ask("GET", "/metrics", Accept_Encoding="br, gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert int(headers["Content-Length"]) == len(packed)
    assert gzip.decompress(packed) == plain
    prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    _, headers, body = port.ask("GET", "/metrics", Accept=prometheus)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("version", ["x", "", "1..0", "1.x", '"1.0.0"', "1" * 5000, "1.0.0\xb2", "1 0"])
def test_a_version_that_nobody_can_read_is_no_error(port: Port, version: str) -> None:
    status, headers, _ = port.ask("GET", "/metrics", Accept=f"application/openmetrics-text; version={version}; q=1")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET  /metrics HTTP/1.1\r\n\r\n",
        b"GET /met rics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\nSet-Cookie: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ],
)
def test_what_is_not_http_is_told_so(port: Port, sent: bytes) -> None:
    back = port.exchange(sent)
    assert back.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Set-Cookie" not in back


@pytest.mark.parametrize("first", ["GET /metrics?{} HTTP/1.1\r\n\r\n", "GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "{}"])
def test_a_head_is_bounded(port: Port, first: str) -> None:
    back = port.exchange(first.format("x" * (MAX_HEAD_BYTES + 1)).encode())
    assert back.startswith(b"HTTP/1.1 431 ")
    almost = first.format("x" * (MAX_HEAD_BYTES - 100)).encode()
    if almost.endswith(b"\r\n\r\n"):
        assert port.exchange(almost).startswith(b"HTTP/1.1 200 ")


def test_a_long_head_costs_no_time(port: Port) -> None:
    started = time.process_time()
    for filler in ("?", " ", ":", "x:\r\n", "/?", "version=1 "):
        port.exchange(f"GET /{filler * (8000 // len(filler))}\r\n\r\n".encode())
        port.exchange(f"GET /metrics HTTP/1.1\r\nAccept: {filler * (8000 // len(filler))}\r\n\r\n".encode())
    assert time.process_time() - started < 1


def test_a_check_that_fails_is_an_answer_and_a_log_line(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    del port.reasons["ready"]
    with caplog.at_level(logging.ERROR):
        assert port.status("/readyz") == 500
    assert [record.getMessage() for record in caplog.records] == ["no answer to /readyz"]
    port.reasons["ready"] = None
    assert port.status("/readyz") == 200


def test_checks_are_asked_in_the_ports_own_thread() -> None:
    asked: list[str] = []

    def check() -> None:
        asked.append(threading.current_thread().name)

    port = Port()
    with exposing("127.0.0.1:0", CollectorRegistry(), live=check, ready=check) as port.address:
        assert port.status("/livez") == port.status("/readyz") == 200
    assert asked == ["metrics", "metrics"]


def test_a_crowd_of_idle_and_slow_clients_keeps_no_probe_waiting(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CONNECTIONS < CROWD
    monkeypatch.setattr(exposition, "CONNECTION_TIMEOUT_S", 60)  # room is made, not waited for
    threads, open_before = threading.active_count(), descriptors()
    with ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(port.connect())
        tricklers = [port.connect() for _ in range(TRICKLERS)]
        for path in ("/livez", "/readyz", "/metrics") * 5:
            for place, trickler in enumerate(tricklers):
                try:
                    trickler.sendall(b"G")
                except OSError:  # closed by the port: a bad client comes back
                    trickler.close()
                    tricklers[place] = port.connect()
            started = time.monotonic()
            assert port.status(path) == 200
            assert time.monotonic() - started < PATIENCE_S / 2
            assert threading.active_count() == threads
            time.sleep(POLL_S)
        clients = CROWD + TRICKLERS
        until(lambda: descriptors() - open_before - clients <= MAX_CONNECTIONS, "the port holds too many connections")
        for trickler in tricklers:
            trickler.close()
    until(lambda: descriptors() == open_before, "connections are left")


def test_the_oldest_idle_connection_makes_room(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "CONNECTION_TIMEOUT_S", 60)
    with ExitStack() as stack:
        clients = [stack.enter_context(port.connect()) for _ in range(MAX_CONNECTIONS)]
        assert port.status("/livez") == 200  # so all of them were accepted, and the first one had to go
        assert clients[0].recv(1) == b""
        clients[-1].sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        assert received(clients[-1]).endswith(b"ok\n")


def test_whoever_has_asked_is_answered_however_many_come_at_once() -> None:
    entered, release, port = threading.Event(), threading.Event(), Port()

    def held() -> None:
        entered.set()
        release.wait(PATIENCE_S)

    with ExitStack() as stack:
        port.address = stack.enter_context(exposing("127.0.0.1:0", CollectorRegistry(), live=lambda: None, ready=held))
        stack.callback(release.set)
        first = stack.enter_context(port.connect())
        first.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert entered.wait(PATIENCE_S)  # the port's thread is held: whatever comes now waits in the kernel
        clients = [stack.enter_context(port.connect()) for _ in range(3 * MAX_CONNECTIONS)]
        for client in clients:
            client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        release.set()
        for client in (first, *clients):
            assert received(client).endswith(b"ok\n")


@pytest.mark.parametrize("sent", [b"", b"GET /liv"])
def test_an_idle_connection_is_dropped_in_time(port: Port, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "CONNECTION_TIMEOUT_S", 0.2)
    with port.connect() as connection:
        connection.sendall(sent)
        assert received(connection) == b""


def test_a_byte_at_a_time_buys_no_time(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "CONNECTION_TIMEOUT_S", 0.2)
    with port.connect() as connection:

        def dropped() -> bool:
            with suppress(ConnectionError):
                connection.sendall(b"G")
                return False
            return True

        until(dropped, "still open")


def test_a_client_that_does_not_read_is_dropped_in_time(large: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "CONNECTION_TIMEOUT_S", 0.2)
    open_before = descriptors()
    with large.connect() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert connection.recv(1) == b"H"
        until(lambda: descriptors() == open_before + 1, "still open")
        assert len(received(connection)) < len(LARGE)


def test_clients_that_do_not_read_keep_no_probe_waiting(large: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "MAX_CONNECTIONS", 4)
    with ExitStack() as stack:
        for _ in range(6):
            client = stack.enter_context(large.connect())
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert client.recv(1) == b"H"  # the answer has begun
        started = time.monotonic()
        assert large.status("/livez") == 200
        assert time.monotonic() - started < 1


def test_clients_that_do_not_read_do_not_cost_a_slower_probe_its_place(
    large: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "MAX_CONNECTIONS", 4)
    with ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(large.connect())
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert client.recv(1) == b"H"
        probe = stack.enter_context(large.connect())
        assert large.status("/livez") == 200
        probe.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        assert received(probe).endswith(b"ok\n")


def test_a_slow_scrape_outlives_a_crowd_of_idle_clients(large: Port) -> None:
    with ExitStack() as stack:
        scraper = stack.enter_context(large.connect())
        scraper.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert scraper.recv(1) == b"H"
        for _ in range(CROWD):
            stack.enter_context(large.connect())
        assert large.status("/livez") == 200
        assert len(received(scraper)) > len(LARGE)


def test_nothing_is_left_after_the_block(port: Port) -> None:
    threads, open_before = threading.active_count(), descriptors()
    with ExitStack() as stack:
        second = Port()
        with exposing("127.0.0.1:0", CollectorRegistry(), live=lambda: None, ready=lambda: None) as second.address:
            clients = [stack.enter_context(second.connect()) for _ in range(3)]
            assert second.status("/livez") == 200
        assert [client.recv(1) for client in clients] == [b""] * 3
        with pytest.raises(ConnectionRefusedError):
            second.connect()
    assert (threading.active_count(), descriptors()) == (threads, open_before)


def test_a_taken_port_is_one_clear_error(port: Port) -> None:
    with (
        pytest.raises(PortError, match=f"cannot listen on {port.address}: Address already in use; free it"),
        exposing(port.address, CollectorRegistry(), live=lambda: None, ready=lambda: None),
    ):
        pass


def test_an_answer_in_two_parts_does_not_wait_for_the_client_on_any_event_loop() -> None:
    """asyncio's own loop turns Nagle's algorithm off only where the socket knows its protocol."""

    async def nodelay() -> list[int]:
        found = []

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            await reader.read()
            writer.close()
        return found

    for factory in (asyncio.SelectorEventLoop, EventLoop):
        with asyncio.Runner(loop_factory=factory) as runner:
            assert all(runner.run(nodelay()))
