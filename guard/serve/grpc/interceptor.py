"""Server interceptors for model servers in Python: the guard inspects in the server's own process, without a hop.

    server = grpc.server(pool, interceptors=[ServerInterceptor(guard.open("bundle"))])
    server = grpc.aio.server(interceptors=[AioServerInterceptor(guard.open("bundle"))])

How it works. The handler of ModelInfer, or of ModelStreamInfer, is wrapped: it gets its messages as bytes, the guard
inspects these, and only what passes is parsed as the server would have parsed it. A message of a stream that may not
pass ends the stream with its status. All other methods are the server's own.

Rule 1: no message reaches the server's handler before its verdict, whatever kind of handler it is.
Rule 2: an inspection never holds up an event loop: it runs on a thread of its own, or on its handler's.
Rule 3: a handler runs where its library would run it without the guard, in the event loop or on a thread.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from guard.errors import GuardError
from guard.local_guard import LocalGuard
from guard.serve.grpc.call import Call
from guard.serve.grpc.request_guard import RequestGuard
from guard.serve.log import Log

INSPECTED = frozenset(f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer"))
Handler = Any  # grpc.RpcMethodHandler, whose fields its types do not have
Parse = Callable[[bytes], Any]


def as_it_is(message: bytes) -> bytes:
    """Parse nothing, for a handler that takes bytes."""
    return message


def rebuilt(handler: Handler, behaviour: Callable[..., Any]) -> Handler:
    """A handler of the same kind that gets its messages as bytes, and writes what the old one writes."""
    make = getattr(grpc, f"{kind(handler)}_rpc_method_handler")
    return make(behaviour, request_deserializer=None, response_serializer=handler.response_serializer)


def kind(handler: Handler) -> str:
    """The kind of a handler, as gRPC names the fields: `unary_unary` and the like."""
    sides = ("stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming))
    return "_".join(sides)


def mark(context: Any, call: Call) -> None:
    """Add the guard's marks to the trailing metadata that the server's handler has set."""
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *call.marks))


class MarkingContext:
    """A context that adds the guard's marks to the trailing metadata that are set.

    grpc.aio's context for handlers on threads cannot be asked afterwards which these are.
    """

    def __init__(self, context: Any, call: Call) -> None:
        self.context, self.call = context, call
        self.set_trailing_metadata(())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def set_trailing_metadata(self, metadata: Iterable[Any]) -> None:
        self.context.set_trailing_metadata((*metadata, *self.call.marks))


class ServerInterceptor(grpc.ServerInterceptor):
    """The guard in a server that handles calls on threads."""

    def __init__(self, guard: LocalGuard, *, allow_models: Iterable[str] = (), log: Log | None = None) -> None:
        self.guard = RequestGuard(guard, frozenset(allow_models), log or Log())

    def intercept_service(self, continuation: Callable[[Any], Handler], handler_call_details: Any) -> Handler:
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method not in INSPECTED:
            return handler
        return Threaded(self.guard).around(handler)


@dataclass(frozen=True)
class Threaded:
    """The guard around handlers that run on a thread, in either kind of server."""

    guard: RequestGuard

    def around(self, handler: Handler) -> Handler:
        old, parse = getattr(handler, kind(handler)), handler.request_deserializer or as_it_is

        def whole(request: bytes, context: Any) -> Any:
            call = self.check(request, context, Call.of(context))
            if not hasattr(context, "trailing_metadata"):
                return old(parse(request), MarkingContext(context, call))
            try:
                return old(parse(request), context)
            finally:
                mark(context, call)

        def generated(request: bytes, context: Any) -> Iterator[Any]:
            self.check(request, context, Call.of(context))
            yield from old(parse(request), context)

        def streamed(requests: Iterator[bytes], context: Any) -> Any:
            return old(self.passing(requests, context, parse), context)

        if handler.request_streaming:
            return rebuilt(handler, streamed)
        return rebuilt(handler, generated if handler.response_streaming else whole)

    def passing(self, requests: Iterator[bytes], context: Any, parse: Parse) -> Iterator[Any]:
        """Yield a stream's messages that pass; the first that does not ends the stream."""
        first = Call.of(context)
        for number, request in enumerate(requests, 1):
            self.check(request, context, Call(context, deadline=first.deadline, id=first.id, number=number))
            yield parse(request)

    def check(self, request: bytes, context: Any, call: Call) -> Call:
        try:
            call.remaining_s()
            self.guard.check(request, call)
        except GuardError as error:
            refusal = call.refusal(error)
            context.set_trailing_metadata(refusal.trailing)
            context.abort(refusal.code, refusal.details)
        return call


class AioServerInterceptor(grpc.aio.ServerInterceptor):
    """The guard in a server that handles calls in an event loop."""

    def __init__(self, guard: LocalGuard, *, allow_models: Iterable[str] = (), log: Log | None = None) -> None:
        self.guard = RequestGuard(guard, frozenset(allow_models), log or Log())
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="guard")  # programs take turns in any case

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler]], handler_call_details: Any
    ) -> Handler:
        handler: Handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method not in INSPECTED:
            return handler
        old, parse = getattr(handler, kind(handler)), handler.request_deserializer or as_it_is
        if not (inspect.iscoroutinefunction(old) or inspect.isasyncgenfunction(old)):
            return Threaded(self.guard).around(handler)  # the library gives it a thread, and a context for threads

        async def given(message: Any, context: Any) -> tuple[Any, Call]:
            call = Call.of(context)
            if handler.request_streaming:
                return self.passing(message, context, parse), call
            await self.check(message, context, call)
            return parse(message), call

        async def answered(message: Any, context: Any) -> Any:
            request, call = await given(message, context)
            try:
                return await old(request, context)
            finally:
                if not handler.response_streaming:
                    mark(context, call)

        async def generated(message: Any, context: Any) -> AsyncIterator[Any]:
            request, _ = await given(message, context)
            async for answer in old(request, context):
                yield answer

        return rebuilt(handler, generated if inspect.isasyncgenfunction(old) else answered)

    async def passing(self, requests: AsyncIterator[bytes], context: Any, parse: Parse) -> AsyncIterator[Any]:
        """Yield a stream's messages that pass; the first that does not ends the stream."""
        first, number = Call.of(context), 0
        async for request in requests:
            number += 1
            await self.check(request, context, Call(context, deadline=first.deadline, id=first.id, number=number))
            yield parse(request)

    async def check(self, request: bytes, context: Any, call: Call) -> None:
        loop = asyncio.get_running_loop()
        try:
            call.remaining_s()
            await loop.run_in_executor(self.thread, self.guard.check, request, call)
        except GuardError as error:
            refusal = call.refusal(error)
            await context.abort(refusal.code, refusal.details, refusal.trailing)
