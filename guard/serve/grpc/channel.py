"""The channel to the model server: its target, its TLS, and how it connects again.

Rule 1: what cannot work is an error at the start: a file of certificates that is none, TLS settings without TLS.
Rule 2: a model server that is not there is no error; the channel connects once it is.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.serve.grpc.connection_limits import keepalive_options
from guard.target import WANTED, parse_target

# Smallest, first and largest wait between attempts: a restarted upstream is found within a second
RECONNECT_MS = (50, 100, 1000)
RESOLVE_MS = 5000  # shortest time between two resolutions of a name; by default 30 s, in which no new address is found
IN_TURN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
SYSTEM_ROOTS = (  # beside what OpenSSL names itself
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


def open_channel(config: ServeConfig, *, max_message_bytes: int) -> grpc.aio.Channel:
    """Open a channel to the configuration's upstream; nothing is waited for.

    Raises:
        ConfigError: the upstream, its authority or its certificates cannot be used.
    """
    target = parse_target(config.upstream)
    if target is None:
        raise ConfigError(f"upstream = {config.upstream!r}; wanted {WANTED}")
    options = channel_options(config, max_message_bytes=max_message_bytes)
    if target.in_turn:
        options.append(("grpc.service_config", IN_TURN))
    if not config.upstream_tls:
        if config.upstream_ca is not None:
            raise ConfigError(
                f"upstream_ca = {config.upstream_ca!r}, but the upstream is spoken to without TLS; "
                "set upstream_tls = true, or leave upstream_ca out"
            )
        return grpc.aio.insecure_channel(target.text, options=options)
    return grpc.aio.secure_channel(target.text, grpc.ssl_channel_credentials(roots(config.upstream_ca)), options)


def channel_options(config: ServeConfig, *, max_message_bytes: int) -> list[tuple[str, Any]]:
    shortest, first, longest = RECONNECT_MS
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.min_reconnect_backoff_ms", shortest),
        ("grpc.initial_reconnect_backoff_ms", first),
        ("grpc.max_reconnect_backoff_ms", longest),
        ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MS),
        ("grpc.keepalive_permit_without_calls", 0),  # a server may cut off who asks while there is no call
        *([] if config.upstream_keepalive_s is None else keepalive_options(config.upstream_keepalive_s)),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if config.upstream_authority is not None:
        options.append(("grpc.default_authority", config.upstream_authority))  # and the name in the certificate
    return options


def roots(file: str | None) -> bytes | None:
    """The certificates that an upstream's must lead to, from a PEM file or the system; None: the library's own.

    Raises:
        ConfigError: the file cannot be read, or holds no certificates.
    """
    if file is None:
        return system_roots((ssl.get_default_verify_paths().cafile, *SYSTEM_ROOTS))
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"upstream_ca = {file!r} cannot be read: {error.strerror}; wanted a PEM file") from error
    try:
        ssl.create_default_context(cadata=content.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"upstream_ca = {file!r} holds no certificates that can be read; wanted a PEM file of certificates"
        ) from error
    return content


def system_roots(files: Sequence[str | None]) -> bytes | None:
    """The first file's certificates that is there."""
    for file in files:
        if file is not None and Path(file).is_file():
            return Path(file).read_bytes()
    return None


def tls_fault(details: str | None) -> str:
    """What to say of a failed handshake, by what gRPC's core said; nothing where it was something else."""
    text = details or ""
    if "handshake failed" not in text and "Verification" not in text:
        return ""
    reason = text.rpartition("last error: ")[2][:300]
    return f"; TLS failed: {reason} (upstream_tls, upstream_ca and upstream_authority decide what is accepted)"
