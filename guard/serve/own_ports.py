"""The addresses that a guard listens on by its settings, and the ports that two of them would take from each other."""

from __future__ import annotations

from collections.abc import Iterator

from guard.config import ServeConfig
from guard.target import split_address

LISTENERS = ("listen", "rest_listen", "metrics_listen", "admin_listen", "authz_listen")
ANY_HOST = frozenset({"0.0.0.0", "[::]", "::"})


def addresses(config: ServeConfig) -> Iterator[tuple[str, str]]:
    """Yield each listener's setting with its address, where it has one."""
    yield from ((name, address) for name in LISTENERS if (address := getattr(config, name)))


def clashes(config: ServeConfig) -> Iterator[str]:
    """Yield what is to be said of each two settings that name one port; a port of 0 is any that is free."""
    seen: dict[int, list[tuple[str, str]]] = {}
    for name, address in addresses(config):
        host, port = split_address(address) or ("", 0)
        host = "127.0.0.1" if host == "localhost" else host
        for other, beside in seen.get(port, ()) if port else ():
            if beside == host or not ANY_HOST.isdisjoint((host, beside)):
                yield f"{name} and {other} are both on port {port}; give each a port of its own"
                break
        seen.setdefault(port, []).append((name, host))
