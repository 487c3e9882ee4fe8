"""The opening of the REST door: a client of the model server, the watch on it, and the listener."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from guard.config import ServeConfig
from guard.serve.grpc.door import Door
from guard.serve.inference import Inference
from guard.serve.limits import MIN_ANSWER_BYTES
from guard.serve.readiness import Readiness
from guard.serve.rest.door import RestDoor
from guard.serve.rest.listener import HttpListener, listening
from guard.serve.rest.tls import FollowingContext, client_context, server_context
from guard.serve.rest.upstream import RestUpstream
from guard.serve.rest.upstream_watch import PART, RestUpstreamWatch
from guard.serve.security import Security
from guard.serve.watching import in_background


@asynccontextmanager
async def rest_door(
    config: ServeConfig,
    inference: Inference,
    readiness: Readiness,
    door: Door,
    side_door: Door,
    security: Security,
) -> AsyncIterator[HttpListener]:
    """Serve REST within the block.

    Raises:
        PortError: as `listening`.
    """
    readiness.say(PART, "the model server was not reached yet over HTTP")
    largest_bytes = max(door.largest_bytes, MIN_ANSWER_BYTES)
    tls = None if security.listener is None else FollowingContext(security.listener, server_context)
    upstream_tls = None if security.upstream is None else FollowingContext(security.upstream, client_context)
    async with RestUpstream.open(config, max_bytes=largest_bytes, tls=upstream_tls) as upstream:
        watch = RestUpstreamWatch(upstream, inference.models, readiness)
        application = RestDoor(
            config=config,
            inference=inference,
            upstream=upstream,
            readiness=readiness,
            metrics=inference.metrics,
            door=door,
            side_door=side_door,
            log=inference.log,
            principals=security.principals,
        ).application()
        async with (
            listening(config.rest_listen, application, config, tls) as listener,
            in_background(watch.run(), partial(readiness.say, PART)),
        ):
            yield listener
