"""The channel to the model server: its target, its TLS, and how it connects again.

Rule 1: what cannot work is an error at the start.
Rule 2: a model server that is not there is no error; the channel connects once it is.
"""

from __future__ import annotations

import json
from typing import Any

import grpc
import grpc.aio

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.serve.certificates import system_roots
from guard.serve.grpc.connection_limits import keepalive_options
from guard.serve.grpc.credentials import channel_credentials
from guard.serve.identities import Identity
from guard.target import WANTED, parse_target

# Smallest, first and largest wait between attempts: a restarted upstream is found within a second
RECONNECT_MS = (50, 100, 1000)
RESOLVE_MS = 5000  # shortest time between two resolutions of a name; by default 30 s, in which no new address is found
IN_TURN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


def open_channel(config: ServeConfig, *, max_message_bytes: int, identity: Identity | None = None) -> grpc.aio.Channel:
    """Open a channel to the configuration's upstream; nothing is waited for.

    `identity` is what `upstream_identity` has made of the configuration's files.

    Raises:
        ConfigError: the upstream or its authority cannot be used.
    """
    target = parse_target(config.upstream)
    if target is None:
        raise ConfigError(f"upstream = {config.upstream!r}; wanted {WANTED}")
    options = channel_options(config, max_message_bytes=max_message_bytes)
    if target.in_turn:
        options.append(("grpc.service_config", IN_TURN))
    if not config.upstream_tls:
        return grpc.aio.insecure_channel(target.text, options=options)
    return grpc.aio.secure_channel(target.text, channel_credentials(identity, system_roots()), options)


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


def tls_fault(details: str | None) -> str:
    """What to say of a failed handshake, by what gRPC's core said; nothing where it was something else."""
    text = details or ""
    if "handshake failed" not in text and "Verification" not in text:
        return ""
    reason = text.rpartition("last error: ")[2][:300]
    return (
        f"; TLS failed: {reason} (upstream_ca and upstream_authority decide what is accepted, upstream_certificate is "
        "what the guard shows)"
    )
