"""The addresses on which the admin listener may be: it tells p-values, which are an attacker's gradient.

Rule: on this machine, or behind a token and TLS; a unix socket is for the guard's own user alone.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.target import socket_path, split_address


def check_admin(config: ServeConfig) -> None:
    """Raise ConfigError where the admin listener would tell p-values to strangers, or tokens travel in the clear."""
    address = config.admin_listen
    if not is_local(address) and (config.admin_tokens is None or config.tls_certificate is None):
        raise ConfigError(
            f"admin_listen = {address!r} is not loopback; it tells p-values to whoever asks, so use unix:PATH or "
            "127.0.0.1:PORT, or set admin_tokens, tls_certificate and tls_key"
        )


def is_local(address: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if socket_path(address) is not None:
        return True
    host = (split_address(address) or ("", 0))[0].strip("[]")
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
