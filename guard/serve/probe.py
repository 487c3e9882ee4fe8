"""A health check by grpc.health.v1, for exec probes, scripts, and programs that wait for a server's start."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2

from guard.errors import NotReadyError
from guard.serve.client_channel import ClientTls, channel_to


def probe(address: str, service: str = "readiness", *, timeout_s: float = 2.0, tls: ClientTls | None = None) -> None:
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
