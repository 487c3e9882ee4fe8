"""The doors that are there only where the settings say so: Envoy's, and REST. What they need is an extra of its own.

Rule 1: a door that is not asked for imports nothing, and listens nowhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.serve.draining import Entrance
from guard.serve.envoy.authorization import HEADERS_BYTES, Authorization
from guard.serve.grpc.connection_limits import ConnectionLimits
from guard.serve.grpc.door import Door
from guard.serve.grpc.gatekeeper import Wall
from guard.serve.grpc.listener import Listener, Methods, listening
from guard.serve.grpc.service import Service
from guard.serve.grpc.upstream import Upstream
from guard.serve.inference import Inference
from guard.serve.readiness import Readiness
from guard.serve.reload import ServerWatch
from guard.serve.security import Security


@asynccontextmanager
async def authorizing(
    config: ServeConfig, service: Service, door: Door, beside: Methods, other: Wall, security: Security
) -> AsyncIterator[dict[str, Listener]]:
    """Answer Envoy's checks within the block, on a listener of their own; there is none unless the settings say where.

    Raises:
        PortError: as `listening`.
    """
    if not config.authz_listen:
        yield {}
        return
    methods = {**Authorization(config, service, door).methods(), **beside}
    largest_bytes, limits = door.largest_bytes + HEADERS_BYTES, ConnectionLimits.of(config)
    async with listening(
        config.authz_listen,
        methods,
        other,
        max_message_bytes=largest_bytes,
        limits=limits,
        credentials=security.credentials_at(config.authz_listen),
    ) as listener:
        yield {"authz": listener}


@asynccontextmanager
async def serving_rest(
    config: ServeConfig,
    inference: Inference,
    readiness: Readiness,
    door: Door,
    side_door: Door,
    security: Security,
    upstream: Upstream,
    watches: list[ServerWatch],
) -> AsyncIterator[dict[str, Entrance]]:
    """Open the REST door within the block; there is none unless the settings say where.

    Where there is a watch on the model server over HTTP, it joins `watches`.

    Raises:
        ConfigError: what it needs is not installed.
        PortError: as `listening`.
    """
    if not config.rest_listen:
        yield {}
        return
    try:
        from guard.serve.rest.opening import rest_door
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"rest_listen = {config.rest_listen!r}, and {error.name} is not installed; "
            "pip install 'inference-guard[rest]', or leave rest_listen out"
        ) from error
    async with rest_door(config, inference, readiness, door, side_door, security, upstream, watches) as listener:
        yield {"rest": listener}
