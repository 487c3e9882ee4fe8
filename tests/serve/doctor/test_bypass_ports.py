"""The ports that are asked for a way around the guard: all that listen for an address, but for its own there."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from guard.config import ServeConfig
from guard.serve.doctor.bypass_check import ports_of
from guard.serve.doctor.machine import ListeningSocket, Machine

POD, POD_V6, PORT = "10.0.0.7", "fd00::7", 28083
ELSEWHERE = dict.fromkeys(("listen", "admin_listen", "metrics_listen"), "127.0.0.1:1")


@dataclass(frozen=True)
class Listening(Machine):
    """A machine on which a model server listens at an address of the pod, or nobody can say who does."""

    at: str | None = POD

    def listening(self) -> tuple[ListeningSocket, ...] | None:
        return None if self.at is None else (ListeningSocket(self.at, PORT, "1"),)


def asked(settings: dict[str, str], host: str, machine: Machine) -> list[int]:
    config = ServeConfig(**{"upstream": f"{POD}:{PORT}", **ELSEWHERE, **settings})  # type: ignore[arg-type]
    return ports_of(cast(Any, SimpleNamespace(given=SimpleNamespace(config=config), machine=machine)), host)


@pytest.mark.parametrize("setting", ["listen", "rest_listen", "metrics_listen", "admin_listen", "authz_listen"])
@pytest.mark.parametrize(
    ("at", "host", "is_asked"),
    [
        ("127.0.0.1", POD, True),
        ("localhost", POD, True),
        ("[::1]", POD, True),
        ("10.0.0.8", POD, True),
        (POD, POD, False),
        ("0.0.0.0", POD, False),
        ("[::]", POD, False),
        ("0.0.0.0", POD_V6, True),
        ("[::]", POD_V6, False),
        (f"[{POD_V6}]", POD_V6, False),
    ],
)
def test_a_port_is_left_out_where_the_guard_itself_answers(setting: str, at: str, host: str, *, is_asked: bool) -> None:
    settings = {setting: f"{at}:{PORT}"}
    assert (PORT in asked(settings, host, Listening(at=host))) == is_asked
    assert (PORT in asked(settings, host, Listening(at=None))) == is_asked


def test_a_socket_of_the_guard_has_no_port() -> None:
    assert asked({"admin_listen": "unix:/tmp/admin.sock"}, POD, Listening()) == [PORT]
