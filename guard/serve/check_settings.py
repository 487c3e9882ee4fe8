"""The checks of settings as a whole, at the start and at each reload: what is missing, and what excludes what."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.serve.envoy.authorization import check_settings
from guard.target import split_address


def check_complete(config: ServeConfig) -> None:
    """Raise ConfigError where a setting is missing, or tells strangers too much."""
    for name in ("bundle", "upstream"):
        if not getattr(config, name) and not (name == "bundle" and config.models):
            raise ConfigError(f"{name} is not set; `guard serve --bundle DIRECTORY --upstream HOST:PORT`")
    check_loopback(config.admin_listen)
    if config.authz_listen:
        check_settings(config)


def check_loopback(address: str) -> None:
    """Raise ConfigError unless the address is loopback: the admin listener tells p-values without authentication."""
    host = (split_address(address) or ("", 0))[0].strip("[]")
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise ConfigError(
            f"admin_listen = {address!r} is not loopback; it tells p-values to whoever asks, so use 127.0.0.1:PORT"
        )
