"""A port that is taken: the error names who is known for it, on a real socket."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from guard.errors import PortError
from guard.serve.neighbours import NEIGHBOURS, neighbour_of, port_error
from tests.serve.guarded import config_for
from tests.serve.test_server import refusal

PORTS = {port: name for name, ports in NEIGHBOURS for port in ports}


@pytest.mark.parametrize("port", [8001, 8080, 8081, 8082, 9000, 9091, 15021, 8083])
def test_known_ports(port: int) -> None:
    taken = OSError(errno.EADDRINUSE, "Address already in use")
    said = str(port_error(f"0.0.0.0:{port}", taken))
    assert said == (
        f"cannot listen on 0.0.0.0:{port}: Address already in use (by default it is the port of {PORTS[port]}); "
        "free it or name another"
    )
    denied = str(port_error(f"0.0.0.0:{port}", OSError(errno.EACCES, "Permission denied")))
    assert "by default" not in denied
    assert "by default" not in str(port_error("0.0.0.0:12345", taken))
    assert "taken or not ours" in str(port_error("0.0.0.0:12345", RuntimeError()))


def test_no_port_has_two_names() -> None:
    assert len(PORTS) == sum(len(ports) for _, ports in NEIGHBOURS)
    assert neighbour_of("127.0.0.1:1") is neighbour_of("nonsense") is None


@pytest.mark.parametrize("listener", ["listen", "metrics_listen"])
def test_a_guard_beside_one_of_them(bundle: Path, listener: str) -> None:
    with ExitStack() as stack:
        port = first_free(stack.enter_context)
        error = refusal(config_for(bundle, "127.0.0.1:1", **{listener: f"127.0.0.1:{port}"}))
    assert isinstance(error, PortError)
    assert f"by default it is the port of {PORTS[port]}" in str(error)


def first_free(kept: Callable[[socket.socket], socket.socket]) -> int:
    """Take the first known port that is free here, and return it."""
    for port in PORTS:
        taking = socket.socket()
        try:
            taking.bind(("127.0.0.1", port))
        except OSError:
            taking.close()
            continue
        kept(taking).listen()
        return port
    raise AssertionError("all known ports are taken on this machine")
