"""A health check by grpc.health.v1, for exec probes, scripts, and programs that wait for a server's start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from guard.errors import ConfigError, NotReadyError
from guard.serve.certificates import authorities_of, certificate_of, system_roots
from guard.serve.grpc.credentials import channel_credentials
from guard.serve.identities import Identity
from guard.serve.rotation import NamedFile


@dataclass(frozen=True)
class ProbeTls:
    """How a probe speaks TLS: whom it trusts, what it shows, and the name that the server's certificate must bear."""

    ca: Path | None = None  # None: the system's
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None  # None: the address's host


def channel_to(address: str, tls: ProbeTls | None) -> grpc.Channel:
    """Open a channel, with TLS if there are settings for it. Raises ConfigError."""
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    if tls.server_name is not None:
        options.append(("grpc.default_authority", tls.server_name))
    given = (("--certificate", tls.certificate), ("--key", tls.key), ("--ca", tls.ca))
    files = {flag: NamedFile(flag, str(path)) for flag, path in given if path is not None}
    if ("--certificate" in files) != ("--key" in files):
        raise ConfigError("--certificate and --key belong together; give both, or none")
    own = roots = None
    if "--certificate" in files:
        content = [files[flag].content() for flag in ("--certificate", "--key")]
        named = [str(files[flag]) for flag in ("--certificate", "--key")]
        own = certificate_of(content[0], content[1], "client", named=named[0], key_named=named[1])
    if "--ca" in files:
        roots = authorities_of(files["--ca"].content(), named=str(files["--ca"]))
    identity = Identity(own, roots, ())
    return grpc.secure_channel(address, channel_credentials(identity, system_roots()), options=options)


def probe(address: str, service: str = "readiness", *, timeout_s: float = 2.0, tls: ProbeTls | None = None) -> None:
    """Return if `service` is SERVING at `address`, HOST:PORT or unix:PATH; "" is the liveness of any server.

    Raises:
        ConfigError: a file for TLS cannot be used.
        NotReadyError: the service is not serving, is not known there, or nothing answers.
    """
    with channel_to(address, tls) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise NotReadyError(
                f"{address} did not say that it serves {service!r}: {error.code().name}, {error.details()}"
            ) from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise NotReadyError(
            f"{address} answers: {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)} for {service!r}"
        )
