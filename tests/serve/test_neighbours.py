"""A port that is taken: the error names who is known for it, on a real socket."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from guard.config import ServeConfig, load_config
from guard.errors import ConfigError, PortError
from guard.serve.neighbours import NEIGHBOURS, neighbour_of, port_error
from guard.serve.own_ports import clashes
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


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": "127.0.0.1:7001", "metrics_listen": "127.0.0.1:7001"},
        {"listen": "0.0.0.0:7001", "rest_listen": "127.0.0.1:7001"},
        {"admin_listen": "127.0.0.1:7001", "authz_listen": "[::]:7001"},
        {"admin_listen": "localhost:7001", "listen": "127.0.0.1:7001"},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_two_settings_on_one_port_are_both_named(bundle: Path, settings: dict[str, str]) -> None:
    """And no neighbour is blamed for it."""
    error = refusal(config_for(bundle, "127.0.0.1:1", **settings))
    assert isinstance(error, ConfigError)
    assert all(name in str(error) for name in settings)
    assert "both on port 7001" in str(error)


def test_one_port_of_two_addresses_and_any_free_port_are_no_clash() -> None:
    apart = {"listen": "127.0.0.1:7001", "metrics_listen": "127.0.0.2:7001", "admin_listen": "unix:/tmp/admin.sock"}
    for settings in (apart, dict.fromkeys(apart, "127.0.0.1:0")):
        assert list(clashes(ServeConfig(**settings))) == []


@pytest.mark.parametrize("listener", ["listen", "metrics_listen", "admin_listen"])
def test_a_listener_that_is_always_there_has_an_address(listener: str) -> None:
    with pytest.raises(ConfigError, match="listen = ''; wanted HOST:PORT"):
        load_config(None, {}, {listener: ""})
    assert load_config(None, {}, {"rest_listen": "", "authz_listen": ""}).rest_listen == ""
