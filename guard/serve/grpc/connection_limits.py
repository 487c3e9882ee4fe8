"""The limits on connections of a listener: how many, how old, how often either end may ask whether the other is there.

A connection that is too old is told so (GOAWAY) and takes no further calls; those under way finish. Its client connects
again, and so finds replicas that came later. gRPC's core varies each connection's age by a tenth, so that not all of
them come back at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guard.config import ServeConfig

PING_TIMEOUT_S = 20.0  # for the other end to answer a ping, before the connection is given up
MAX_OPTION_MS = 2**31 - 1


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of one listener; an age or a grace of None has no end."""

    connections: int
    calls: int  # on one connection
    max_age_s: float | None = None
    grace_s: float | None = None  # for calls on a connection that is too old
    keepalive_s: float = 60.0  # of silence, before a client is asked whether it is there
    min_ping_interval_s: float = 5.0  # between two of a client's own pings

    @staticmethod
    def of(config: ServeConfig) -> ConnectionLimits:
        return ConnectionLimits(
            connections=config.max_connections,
            calls=config.max_calls_per_connection,
            max_age_s=config.max_connection_age_s,
            grace_s=config.max_connection_age_grace_s,
            keepalive_s=config.keepalive_s,
            min_ping_interval_s=config.min_ping_interval_s,
        )

    def options(self) -> list[tuple[str, Any]]:
        """The limits as arguments of a server of gRPC's core."""
        found: list[tuple[str, Any]] = [
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_concurrent_streams", self.calls),
            *keepalive_options(self.keepalive_s),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", milliseconds(self.min_ping_interval_s)),
        ]
        if self.max_age_s is not None:
            found.append(("grpc.max_connection_age_ms", milliseconds(self.max_age_s)))
        if self.grace_s is not None:
            found.append(("grpc.max_connection_age_grace_ms", milliseconds(self.grace_s)))
        return found


def keepalive_options(every_s: float) -> list[tuple[str, Any]]:
    """The arguments with which either end asks, after so long a silence, whether the other is there."""
    return [
        ("grpc.keepalive_time_ms", milliseconds(every_s)),
        ("grpc.keepalive_timeout_ms", milliseconds(PING_TIMEOUT_S)),
        ("grpc.http2.max_pings_without_data", 0),  # by default two, and a long call has no more
    ]


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, one at least, as many as gRPC's core takes at most."""
    return max(1, min(MAX_OPTION_MS, round(min(seconds, MAX_OPTION_MS) * 1000)))
