"""TLS for HTTP: a context that follows the guard's certificates, and the peer that a connection's handshake has shown.

How it works. asyncio and uvloop ask one context for each connection's handshake. This one passes the question on to a
context made of the certificates of that moment, so a listener never has to be opened anew.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from guard.serve.certificates import as_file, pem_text
from guard.serve.identities import Identity
from guard.serve.principal import Peer
from guard.serve.rotation import Rotated

Make = Callable[[Identity], ssl.SSLContext]
PEER = "peer"  # in a request's state
KINDS = ("URI", "DNS", "email")  # of a certificate's names, the first that is there; then its common name


class FollowingContext(ssl.SSLContext):
    """A context each of whose connections shakes hands with the certificates of that moment."""

    def __new__(
        cls,
        identity: Rotated[Identity],  # noqa: ARG004  `__init__` takes both
        make: Make,
    ) -> FollowingContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER if make is server_context else ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, identity: Rotated[Identity], make: Make) -> None:
        """Follow an identity; `make` is `server_context` or `client_context`."""
        self.identity, self.make = identity, make
        self.generation = identity.generation
        self.current = make(identity.value)

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        if self.generation != (generation := self.identity.generation):
            self.current, self.generation = self.make(self.identity.value), generation
        return self.current.wrap_bio(*arguments, **options)


def server_context(identity: Identity) -> ssl.SSLContext:
    """A context with the guard's certificate; with authorities, clients must show one that leads there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    show(context, identity)
    if identity.authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=pem_text(identity.authorities.pem))
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """A context for the model server, whose certificate must lead to the authorities, or to the system's."""
    roots = None if identity.authorities is None else pem_text(identity.authorities.pem)
    context = ssl.create_default_context(cadata=roots)
    context.set_alpn_protocols(["http/1.1"])
    show(context, identity)
    return context


def show(context: ssl.SSLContext, identity: Identity) -> None:
    """Let a context show the guard's certificate, if there is one."""
    if identity.certificate is not None:
        with as_file(identity.certificate.chain) as chain, as_file(identity.certificate.key) as key:
            context.load_cert_chain(chain, key)


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """The other end of a connection."""
    address = transport.get_extra_info("peername")
    certificate = transport.get_extra_info("peercert") or {}
    given = [(kind, name) for kind, name in certificate.get("subjectAltName", ()) if name.isprintable()]
    names = [name for kind in KINDS for found, name in given if found == kind]
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    names += [name for kind, name in subject if kind == "commonName" and name.isprintable()]
    return Peer(str(address[0]) if address else "", tuple(names))
