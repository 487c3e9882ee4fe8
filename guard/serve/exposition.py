"""Prometheus metrics over HTTP, from a thread of their own: a slow scraper never holds up a request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from guard.config import split_address
from guard.errors import PortError

STOP_POLL_S = 0.05


class Server(ThreadingMixIn, WSGIServer):
    """One thread a scrape."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Without the look-up of our own name, which hangs where there is no DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class Server6(Server):
    address_family = socket.AF_INET6


class Silent(WSGIRequestHandler):
    """Writes no access log: standard error is for JSON lines."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def exposing(address: str, registry: CollectorRegistry) -> Iterator[str]:
    """Serve `registry` on `address` within the block; yields the address really bound. Raises PortError."""
    host, port = split_address(address) or ("", 0)
    try:
        kind = Server6 if ":" in host else Server
        server = make_server(host.strip("[]"), port, make_wsgi_app(registry), server_class=kind, handler_class=Silent)
    except OSError as error:
        raise PortError(f"cannot listen on {address}: {error.strerror}; free it or name another") from error
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": STOP_POLL_S}, name="metrics", daemon=True
    )
    thread.start()
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
