"""A gRPC server on one address, with health and reflection beside its own handlers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from guard.config import split_address
from guard.errors import PortError
from guard.serve.health import Health
from guard.serve.wire import guard_pb2, inference_pb2

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


@asynccontextmanager
async def listening(
    address: str, handlers: Sequence[Any], health: Health, services: Sequence[str], *, max_message_bytes: int
) -> AsyncIterator[tuple[grpc.aio.Server, str]]:
    """A gRPC server on `address`, with health and reflection beside its own handlers. Raises PortError."""
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # on by default, and then a forgotten second guard silently shares the port
            ("grpc.max_receive_message_length", max_message_bytes),  # of the message when it is unpacked
            ("grpc.max_send_message_length", max_message_bytes),
        ]
    )
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [*services, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server, pool=reflection_pool())
    server.add_generic_rpc_handlers(handlers)
    port = bound(server, address)
    await server.start()
    try:
        yield server, f"{address.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(0)


def bound(server: grpc.aio.Server, address: str) -> int:
    """The port that was really bound. Raises PortError."""
    try:
        try_bind(address)
        return server.add_insecure_port(address)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "it is taken or not ours"
        raise PortError(f"cannot listen on {address}: {why}; free it or name another") from error


def try_bind(address: str) -> None:
    """Bind and let go: a failure says why, and spares us gRPC's own lines on standard error. Raises OSError."""
    host, port = split_address(address) or ("", 0)
    family, kind, protocol, _, target = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(target)


def reflection_pool() -> DescriptorPool:
    """Descriptors of all that we serve, in a pool of their own."""
    pool = DescriptorPool()
    for file in (inference_pb2, guard_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(file.DESCRIPTOR.serialized_pb)
    return pool
