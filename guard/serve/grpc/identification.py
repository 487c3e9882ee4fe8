"""The caller of a gRPC call: what its context knows of the peer, handed to what tells principals.

Rule 1: names come from certificates that gRPC's core has verified, and in one order: URI, DNS, e-mail, common name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from guard.serve.grpc.call import Call
from guard.serve.principal import UNIX, Identified, Peer, Principals

NAMES = ("peer_uri", "peer_dns", "peer_email", "x509_common_name")
PEER = re.compile(r"ipv[46]:\[?([^\]]+?)(%\w+)?\]?:\d+")

Identify = Callable[[Call], None]


def identifying(principals: Principals) -> Identify:
    """Build the step that names a call's principal before its message is read; it raises Unauthenticated."""

    def identify(call: Call) -> None:
        if principals.source == "none":
            return
        headers, peer = call.context.invocation_metadata() or (), peer_of(call.context)
        if call.asked is not None:  # the request of a client of Envoy's, who has looked at its certificate
            headers = call.asked.metadata
            if principals.source == "tls":
                peer = Peer(peer.address, tuple(filter(None, [call.asked.principal])))
        found: Identified = principals.identify(headers, peer)
        call.principal, call.withheld = found.principal, found.withheld

    return identify


def peer_of(context: Any) -> Peer:
    """The other end of a call's connection."""
    known: Mapping[str, Any] = context.auth_context() or {}
    names = [text for key in NAMES for name in known.get(key, ()) if (text := readable(name))]
    text = unquote(context.peer() or "")
    found = PEER.fullmatch(text)
    address = found.group(1) if found is not None else UNIX if text.startswith("unix:") else ""
    return Peer(address, tuple(names))


def readable(name: bytes | str) -> str:
    """Return a certificate's name as text; nothing where it is none, or has characters that no log should have."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return text if text.isprintable() else ""
