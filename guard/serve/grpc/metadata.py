"""Metadata of calls: what travels from one end to the other, and what belongs to one hop.

Rule 1: `guard-*` is the guard's own, and is taken from neither end.
Rule 2: `grpc-*` is the protocol's own for one hop, but for the details of a status; a server's word on retries goes
        down as well, since the guard retries nothing itself. (`grpc-trace-bin` and `grpc-tags-bin` would travel, too:
        gRPC's core shows them to no application.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Metadata = tuple[tuple[str, str | bytes], ...]

OURS = "guard-"
RESERVED = "grpc-"
RETRY_PUSH_BACK = "grpc-retry-pushback-ms"
ENVOY_NEVER_RETRIES = ("x-envoy-ratelimited", "true")  # by any policy but the one that names it
NEVER_RETRY = ((RETRY_PUSH_BACK, "-1"), ENVOY_NEVER_RETRIES)  # gRPC's own clients heed the first
TRAVELLING = frozenset({"grpc-status-details-bin"})  # of the reserved names
ONE_HOP = frozenset(
    {
        *("user-agent", "content-type", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"),
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"),
        *("http2-settings", "accept-encoding", "content-encoding"),
    }
)
LEGAL_KEY = re.compile("[0-9a-z_.-]+")
LEGAL_VALUE = re.compile("[ -~]*")


def end_to_end(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """The metadata for the two ends, and neither the connection nor us; what no gRPC client may send is left out.

    gRPC's servers take any byte in a text header unchecked, its clients send none but printable ASCII: a call with such
    a header would fail here where a direct one does not. The header cannot travel on, the call can.
    """
    return tuple((key, value) for key, value in metadata or () if travels(key) and may_be_sent(key, value))


def downwards(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """The metadata of an answer for the client: what is end to end, and what the model server says of retries."""
    given = tuple(metadata or ())
    return (*end_to_end(given), *((key, value) for key, value in given if key == RETRY_PUSH_BACK))


def travels(key: str) -> bool:
    """Whether a header is for the two ends of a call, by its name."""
    if key.startswith(RESERVED):
        return key in TRAVELLING
    return key not in ONE_HOP and not key.startswith(OURS)


def may_be_sent(key: str, value: str | bytes) -> bool:
    """Whether gRPC lets a client send this header."""
    if not LEGAL_KEY.fullmatch(key):
        return False
    if key.endswith("-bin"):
        return isinstance(value, bytes)
    return isinstance(value, str) and LEGAL_VALUE.fullmatch(value) is not None
