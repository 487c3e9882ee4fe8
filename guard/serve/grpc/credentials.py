"""gRPC's credentials from the guard's certificates: for a listener, which follows its files, and for a channel.

Rule 1: a connection is accepted with the certificate of that moment; those that are open already go on as they are.
Rule 2: with authorities, a client without a certificate of theirs gets no connection: grpcio knows no "optional".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from guard.serve.identities import Identity
from guard.serve.rotation import Rotated

Credentials = Callable[[], grpc.ServerCredentials]


def listener_credentials(identity: Rotated[Identity]) -> grpc.ServerCredentials:
    """The credentials of one listener, which asks for what is new before each handshake."""
    given = identity.generation

    def fetch() -> Any:  # called in a thread of gRPC's core
        nonlocal given
        generation = identity.generation
        if generation == given:
            return None
        given = generation
        return configuration(identity.value)

    must = identity.value.authorities is not None
    return grpc.dynamic_ssl_server_credentials(configuration(identity.value), fetch, must)


def configuration(identity: Identity) -> Any:
    if identity.certificate is None:
        raise ValueError("a listener needs a certificate")
    roots = None if identity.authorities is None else identity.authorities.pem
    pair = (identity.certificate.key, identity.certificate.chain)
    return grpc.ssl_server_certificate_configuration([pair], roots)


def channel_credentials(identity: Identity | None, system_roots: bytes | None) -> grpc.ChannelCredentials:
    """The credentials of a channel; without authorities of its own the system's certificates count."""
    roots = identity.authorities.pem if identity is not None and identity.authorities is not None else system_roots
    own = identity.certificate if identity is not None else None
    if own is None:
        return grpc.ssl_channel_credentials(roots)
    return grpc.ssl_channel_credentials(roots, own.key, own.chain)
