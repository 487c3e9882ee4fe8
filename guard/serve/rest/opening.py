"""The opening of the REST door: a client of the model server, the watch on it, and the listener.

Without an HTTP address of the model server it is asked over gRPC, where another watch knows whether it is ready.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from guard.config import ServeConfig
from guard.serve.grpc.door import Door
from guard.serve.grpc.upstream import Upstream
from guard.serve.inference import Inference
from guard.serve.limits import MIN_ANSWER_BYTES
from guard.serve.readiness import Readiness
from guard.serve.reload import ServerWatch
from guard.serve.rest.door import RestDoor
from guard.serve.rest.listener import HttpListener, listening
from guard.serve.rest.over_grpc import RestOverGrpc
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
    over_grpc: Upstream,
    watches: list[ServerWatch],
) -> AsyncIterator[HttpListener]:
    """Serve REST within the block; where there is a watch on the model server over HTTP, it joins `watches`.

    Raises:
        PortError: as `listening`.
    """
    largest_bytes = max(door.largest_bytes, MIN_ANSWER_BYTES)
    tls = None if security.listener is None else FollowingContext(security.listener, server_context)
    upstream_tls = None if security.upstream is None else FollowingContext(security.upstream, client_context)
    async with AsyncExitStack() as stack:
        upstream: RestUpstream | RestOverGrpc
        watch: RestUpstreamWatch | None = None
        if config.rest_upstream:
            readiness.say(PART, "the model server was not reached yet over HTTP")
            opened = RestUpstream.open(config, max_bytes=largest_bytes, tls=upstream_tls)
            upstream = reached = await stack.enter_async_context(opened)
            watch = RestUpstreamWatch(reached, inference.models, readiness)
            watches.append(watch)
        else:
            versions = inference.models.versions
            upstream = RestOverGrpc(over_grpc, versions, max_bytes=largest_bytes, aside=door.aside)
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
        listener = await stack.enter_async_context(listening(config.rest_listen, application, config, tls))
        if watch is not None:
            await stack.enter_async_context(in_background(watch.run(), partial(readiness.say, PART)))
        yield listener
