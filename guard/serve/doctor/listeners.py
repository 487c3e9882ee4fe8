"""The addresses that the guard's settings let it listen on: who has them now, and what its metrics listener says.

Rule 1: an address is bound for a moment and never listened on, so that a guard that starts meanwhile is not in the way.
"""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import stat
from contextlib import suppress
from pathlib import Path

from guard.config import ServeConfig
from guard.serve.grpc.unix_socket import make_room
from guard.serve.own_ports import addresses as addresses
from guard.target import socket_path, split_address

MAX_METRICS_BYTES = 2**22
MARK = "guard_build_info"  # a metric that every guard has


def bind_fault(address: str) -> OSError | None:
    """Why an address cannot be listened on; None where it can."""
    path = socket_path(address)
    try:
        if path is not None:
            if not Path(path).exists():
                make_room(Path(path))
            elif not stat.S_ISSOCK(Path(path).lstat().st_mode):
                raise OSError(errno.EEXIST, "there is a file that is no socket")
            elif answers(path):
                raise OSError(errno.EADDRINUSE, "another server listens on it")
            return None
        host, port = split_address(address) or ("", 0)
        host = host.strip("[]")
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taking:
            taking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taking.bind((host, port))
    except OSError as error:
        return error
    return None


def answers(path: str) -> bool:
    """Whether a server listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(path) == 0


def spoken_at(host: str, port: int, timeout_s: float) -> str:
    """What an address speaks: `nothing` where nothing listens, `TLS`, `HTTP/1`, or nothing known (an empty text)."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout_s) as connection, suppress(OSError, ValueError):
            unverified.wrap_socket(connection).close()
            return "TLS"
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: guard-doctor\r\nconnection: close\r\n\r\n")
            return "HTTP/1" if connection.recv(6) == b"HTTP/1" else ""
    except ConnectionRefusedError:
        return "nothing"
    except OSError:
        return ""


def is_running(config: ServeConfig, timeout_s: float) -> bool:
    """Whether a guard with these settings serves already: its metrics are there, and all its addresses are taken."""
    fixed = [address for _, address in addresses(config) if (split_address(address) or ("", 1))[1] != 0]
    faults = [bind_fault(address) for address in fixed]
    if any(fault is None or fault.errno != errno.EADDRINUSE for fault in faults):
        return False
    return MARK in page(config.metrics_listen, "/metrics", timeout_s)[1]


def page(address: str, path: str, timeout_s: float) -> tuple[int, str]:
    """The status and the text of a page of the metrics listener; 0 and nothing where none answers."""
    host, port = split_address(address) or ("", 0)
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1", "::": "::1"}.get(host, host.strip("[]"))
    if not port:
        return 0, ""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(MAX_METRICS_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException, ValueError):
        return 0, ""
    finally:
        connection.close()
