"""The REST door: an application of starlette that answers, passes or refuses by path, and hands tensors to inference.

Rule 1: a path passes only if it is harmless, or opened by the operator; then it is marked and counted.
Rule 2: errors become HTTP statuses in `handled`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from guard.config import ServeConfig
from guard.errors import GuardError, NotAllowed, Unchecked
from guard.serve.failure_table import ALLOWED_METHOD
from guard.serve.grpc.door import SHUTTING_DOWN, Door
from guard.serve.grpc.extensions import works
from guard.serve.grpc.method_groups import opened_methods
from guard.serve.grpc.upstream import path as full_path
from guard.serve.inference import Inference
from guard.serve.inference_call import UNCHECKED
from guard.serve.log import Log
from guard.serve.metrics import OTHER, Metrics
from guard.serve.principal import Principals
from guard.serve.readiness import Readiness
from guard.serve.rest import paths
from guard.serve.rest.answer import RestAnswer
from guard.serve.rest.body import body_of, unless_left
from guard.serve.rest.call import CLIENT_LEFT_CODE, RestCall, response
from guard.serve.rest.exchange import RestExchange
from guard.serve.rest.headers import text_headers, values
from guard.serve.rest.over_grpc import RestOverGrpc
from guard.serve.rest.paths import RestPath
from guard.serve.rest.tls import PEER
from guard.serve.rest.upstream import RestUpstream

UNIDENTIFIED = frozenset({paths.LIVE.procedure, paths.READY.procedure})  # probes bear neither token nor certificate
ENCODED_SLASH = b"%2f"

Work = Callable[[Request, RestCall], Awaitable[Response]]
Ended = Callable[[RestCall], None]


@dataclass(kw_only=True)
class RestDoor:
    """The handlers of all paths."""

    config: ServeConfig
    inference: Inference
    upstream: RestUpstream | RestOverGrpc
    readiness: Readiness
    metrics: Metrics
    door: Door  # of tensors
    side_door: Door  # of what is small
    log: Log
    principals: Principals

    def __post_init__(self) -> None:
        self.opened_methods = opened_methods(self.config.allow_methods)

    def application(self) -> Starlette:
        """The application; what no path matches is refused."""
        routes = [
            *self.routes(lambda path: partial(self.infer, path), paths.INFER, ended=self.inference.ended),
            *self.routes(lambda _: self.live, [paths.LIVE], outcome="answered"),
            *self.routes(lambda _: self.ready, [paths.READY], outcome="answered"),
            *self.routes(lambda path: partial(self.server_metadata, path), [paths.SERVER_METADATA]),
            *self.routes(lambda path: partial(self.model_ready, path), paths.MODEL_READY),
        ]
        for path in paths.CLOSED:
            is_open = full_path(path.procedure) in self.opened_methods
            work = (lambda path: partial(self.opened, path)) if is_open else (lambda _: self.closed)
            routes += self.routes(work, [path], outcome="opened" if is_open else "answered")
        routes += self.routes(lambda path: partial(self.passed, path), paths.MODEL_METADATA)
        application = Starlette(routes=routes, exception_handlers={HTTPException: self.unmatched})
        application.router.redirect_slashes = False
        return application

    def routes(
        self,
        work_of: Callable[[RestPath], Work],
        group: tuple[RestPath, ...] | list[RestPath],
        *,
        ended: Ended | None = None,
        outcome: str = "passed",
    ) -> Iterator[Route]:
        """The routes of some paths; each call's end is counted by `ended`, or under the path's procedure."""
        for path in group:
            label = path.procedure
            note = ended or partial(self.count, label, outcome)
            yield Route(path.template, partial(self.handled, work_of(path), note, label), methods=list(path.verbs))

    def count(self, procedure: str, outcome: str, call: RestCall) -> None:
        label = self.metrics.method(procedure)
        self.metrics.calls.labels(label, outcome if call.end == "answered" else call.end).inc()

    async def handled(self, work: Work, ended: Ended, label: str, request: Request) -> Response:
        """Answer a request, whatever becomes of the work on it."""
        call = RestCall(text_headers(request.headers.raw), request.client)
        status = CLIENT_LEFT_CODE
        try:
            if ENCODED_SLASH in request.scope["raw_path"].lower():  # a part of a name to some, of the path to others
                await self.closed(request, call)
            if label not in UNIDENTIFIED:
                self.identify(request, call)
            found = await work(request, call)
            status = found.status_code
        except (asyncio.CancelledError, ClientDisconnect) as error:
            call.end = "cancelled"
            if isinstance(error, asyncio.CancelledError):
                raise
            return response(status, ())
        except Exception as error:  # noqa: BLE001  uvicorn would tell the client nothing
            call.ended(error)
            if not isinstance(error, GuardError) and call.end == "refused":
                self.log.error("internal", **call.names, cause=repr(error))
            found = call.refusal(error)
            status = found.status_code
        finally:
            ended(call)
            call.forget()
            self.metrics.answered_http(label, status)
        return found

    def identify(self, request: Request, call: RestCall) -> None:
        """Name a call's principal before its body is read. Raises Unauthenticated."""
        found = self.principals.identify(call.headers, getattr(request.state, PEER))
        call.principal, call.withheld = found.principal, found.withheld

    # what carries tensors

    async def infer(self, path: RestPath, request: Request, call: RestCall) -> Response:
        """Inspect a request to a model, and forward or refuse it."""
        self.check_open()
        self.inference.enter(call)
        with self.door.counted():
            async with body_of(request, call.headers, self.door) as (body, permit):
                names = request.path_params
                exchange = RestExchange(
                    call,
                    self.upstream,
                    names["model"],
                    names.get("version", ""),
                    path.filled(names, request.url.query),
                    body,
                    self.door.largest_bytes,
                )
                largest = self.door.largest_bytes if values(call.headers, "content-encoding") else len(body)
                held_bytes = await self.door.aside(largest, exchange.unpack)
                permit.shrink(held_bytes)
                async with permit.with_more(held_bytes):
                    answer = await unless_left(request.receive, self.inference.infer(exchange, call))
        return call.delivered(answer)

    def check_open(self) -> None:
        if self.door.closed:
            raise Unchecked(SHUTTING_DOWN, elsewhere=True)

    # what carries none

    async def live(self, request: Request, call: RestCall) -> Response:  # noqa: ARG002
        """Answer for the guard itself, which never depends on the upstream."""
        return json_response(HTTPStatus.OK, {"live": True})

    async def ready(self, request: Request, call: RestCall) -> Response:  # noqa: ARG002
        return readiness_response(self.readiness.because)

    async def model_ready(self, path: RestPath, request: Request, call: RestCall) -> Response:
        """Answer that a model is not ready while the guard is not ready for it, else what the upstream says."""
        version = request.path_params.get("version", "")
        for model in self.inference.models.table.named(request.path_params["model"]):
            reason = self.readiness.of(model.label)
            if reason is not None and (not version or model.spec.version in ("", version)):
                return readiness_response(reason)
        return await self.passed(path, request, call)

    async def server_metadata(self, path: RestPath, request: Request, call: RestCall) -> Response:
        """Answer as the upstream does, but for the extensions that do not work through the guard."""
        answer = await self.forward(path, request, call, b"")
        mode = self.inference.models.table.strictest_mode
        return call.delivered(working(answer, lambda name: works(name, self.opened_methods, mode)))

    async def passed(self, path: RestPath, request: Request, call: RestCall) -> Response:
        """Pass a harmless request, which has no body."""
        return call.delivered(await self.forward(path, request, call, b""))

    async def opened(self, path: RestPath, request: Request, call: RestCall) -> Response:
        """Pass a request that the operator has opened, body and answer as bytes."""
        self.check_open()
        call.told = UNCHECKED
        self.metrics.unchecked.labels(OTHER, ALLOWED_METHOD).inc()
        with self.side_door.counted():
            async with body_of(request, call.headers, self.side_door) as (body, _):
                return call.delivered(await self.forward(path, request, call, body))

    async def forward(self, path: RestPath, request: Request, call: RestCall, body: bytes) -> RestAnswer:
        asking = self.upstream.ask(
            request.method, path.filled(request.path_params, request.url.query), call.upward, body
        )
        return await unless_left(request.receive, asking)

    async def closed(self, request: Request, call: RestCall) -> Response:  # noqa: ARG002
        raise NotAllowed(
            f"the guard does not pass {request.method} {request.url.path[:80]}, which it cannot inspect; "
            "allow_methods opens it"
        )

    async def unmatched(self, request: Request, error: Exception) -> Response:
        """Refuse what no path matches, and a path's other HTTP methods."""
        status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
        if status != HTTPStatus.METHOD_NOT_ALLOWED:
            return await self.handled(self.closed, partial(self.count, OTHER, "answered"), OTHER, request)
        allowed = (getattr(error, "headers", None) or {}).get("Allow", "")
        self.metrics.calls.labels(OTHER, "refused").inc()
        self.metrics.answered_http(OTHER, status)
        text = f"{request.url.path[:80]} takes {allowed}, not {request.method[:20]}"
        return json_response(status, {"error": text}, ("allow", allowed))


def readiness_response(reason: str | None) -> Response:
    """The response to a question for readiness: 200, or 503 and the reason why not."""
    if reason is None:
        return json_response(HTTPStatus.OK, {"ready": True})
    return json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"ready": False, "error": reason})


def json_response(status: int, document: Mapping[str, Any], *headers: tuple[str, str]) -> Response:
    return response(status, (("content-type", "application/json"), *headers), json.dumps(document).encode())


def working(answer: RestAnswer, works_here: Callable[[str], bool]) -> RestAnswer:
    """An answer about the server without the extensions that do not work; as it came where it is packed or odd."""
    if values(answer.headers, "content-encoding"):
        return answer
    try:
        document = json.loads(answer.body)
        kept = [name for name in document["extensions"] if works_here(name)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return answer
    if kept == document["extensions"]:
        return answer
    return replace(answer, body=json.dumps({**document, "extensions": kept}).encode())
