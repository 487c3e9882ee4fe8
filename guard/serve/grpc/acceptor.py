"""A gRPC server that takes calls from gRPC's core as grpc.aio does, and survives whatever a client can send.

How it works. grpc.aio takes every call in one coroutine, and decodes the call's path there: a path that is not UTF-8
raises, the coroutine ends, and the library answers by cancelling all calls and closing the port. Here each known method
is registered with the core, which compares paths as bytes; whatever is not registered goes to one handler that needs no
path. So no byte of a client is decoded in the coroutines that accept. A call waits in the core, unseen and uncounted,
until it is asked for, so dozens of requests for calls are kept open. A flood of calls must not delay the calls that are
being handled, nor a client that calls once: at most `TURN_CALLS` calls begin in one turn of the event loop. The others
wait, and the newest is taken first, since it has the most time left; `gatekeeper` explains the order.

Rule 1: nothing that a client sends ends the acceptance of calls.
Rule 2: should it end all the same, `lost` is called, and calls in flight go on: the listener decides what to do.
Rule 3: the library's private parts are used only where they look as they did when this was written (`KNOWN`).
        Elsewhere the library accepts calls by itself, and only rule 2 holds.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # it ships no types

from guard.serve.grpc.gatekeeper import MAX_TURN_REFUSALS, TURN_CALLS, Gate, GateKeeper, Porter, Refusal, Ticket, Wall

POSTED_CALLS = 32  # calls of one method that the core hands over without being asked again
GATE_POSTED_CALLS = 256
UNREGISTERED = "unregistered"  # stands for the path of every call whose method is not registered

KNOWN = {  # private function -> its parameters, as this file calls it
    "_handle_rpc": "method_name method_resolver interceptors rpc_state loop concurrency_exceeded",
    "_schedule_rpc_coro": "rpc_coro rpc_state loop method_name",
    "_send_error_status_from_server": "grpc_call_wrapper code details trailing_metadata send_initial_metadata_op loop",
}
KNOWN_METHODS = ("_make_request_call_future", "_request_call", "_request_registered_call", "_server_main_loop")

Options = Sequence[tuple[str, Any]]
Lost = Callable[[BaseException], None]


Begin = Callable[[Any], object]  # what happens to a call that was taken
Done = Callable[[Any, Exception | None], None]
TICKET: ContextVar[Ticket | None] = ContextVar("TICKET", default=None)  # of the call that is being handled


def is_known() -> bool:
    """Whether the installed grpcio has the private functions that `Acceptor` uses, with the same parameters."""
    try:
        found = {name: " ".join(inspect.signature(getattr(cygrpc, name)).parameters) for name in KNOWN}
    except (AttributeError, TypeError, ValueError):
        return False
    return found == KNOWN and all(hasattr(cygrpc.AioServer, name) for name in KNOWN_METHODS)


class _CoreStartedError(Exception):
    """The way out of the library's own accepting coroutine once it has started the core."""


class WatchedServer(cygrpc.AioServer):  # type: ignore[misc]  # it ships no types
    """The library's server, except that the end of its acceptance cancels no call and is reported to `lost`."""

    def __init__(self, options: Options, lost: Lost) -> None:
        self.loop = asyncio.get_running_loop()
        super().__init__(self.loop, None, (), (), tuple(options), None)
        self.lost = lost

    def serve(self, methods: Mapping[str, Any], other: Any, gates: Mapping[str, Gate]) -> None:  # noqa: ARG002
        """Answer each path of `methods` by its handler, and every other path by `other`.

        Where the library accepts by itself there are no gates, and so no tickets: the handler has to refuse what a gate
        would have refused.
        """
        handlers = {path: as_handler(what) for path, what in methods.items()}
        self.add_generic_rpc_handlers([_Dispatch(handlers, as_handler(other))])

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Bind an address, with TLS if there are credentials, and return its port.

        Raises:
            RuntimeError: it cannot be bound.
        """
        port: int
        if credentials is None:
            port = self.add_insecure_port(address.encode())
        else:
            port = self.add_secure_port(address.encode(), credentials)
        return port

    def _serving_task_crash_handler(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self.is_running():
            self.lost(error)


class Acceptor(WatchedServer):
    """A server that takes calls by registered method, and never decodes a path."""

    def serve(self, methods: Mapping[str, Any], other: Any, gates: Mapping[str, Gate]) -> None:
        """Answer paths as `WatchedServer` does; a path's gate is asked before anything is spent on a call."""
        self.methods, self.other, self.gates = dict(methods), other, dict(gates)
        self.calls: set[asyncio.Task[None]] = set()
        self.add_registered_method_handlers({path: as_handler(what) for path, what in methods.items()})

    def _make_request_call_future(self, method: bytes | None) -> Any:  # noqa: ARG002  the library's signature
        raise _CoreStartedError

    async def _server_main_loop(self, started: asyncio.Future[bool]) -> None:
        with suppress(_CoreStartedError):
            await super()._server_main_loop(started)
        porter = Porter(self.loop, self.begin_with, TURN_CALLS)
        rebuffs = Porter(self.loop, self.rebuff, MAX_TURN_REFUSALS)
        self.accepting = self.loop.create_future()
        for path, handler in (*self.methods.items(), (None, self.other)):
            if isinstance(handler, Wall):
                take: Callable[[Any, Any], None] = partial(rebuffs.take, handler)
            elif path in self.gates:
                take = GateKeeper(
                    self.gates[path], self.loop, partial(self.enter, path, _Fixed(handler)), self.turn_away
                ).take
            else:
                take = partial(porter.take, (path or UNREGISTERED, _Fixed(handler)))
            for _ in range(GATE_POSTED_CALLS if path in self.gates else POSTED_CALLS):
                self.accept(None if path is None else path.encode(), partial(self.show, take))
        await self.accepting

    def accept(self, method: bytes | None, begin: Begin) -> None:
        """Ask the core for the next call of a method, which `came` then begins."""
        asked = self._request_call() if method is None else self._request_registered_call(method)
        drive(asked, partial(self.came, method, begin))

    def came(self, method: bytes | None, begin: Begin, call: Any, error: Exception | None) -> None:
        """Begin a call that the core has handed over, and ask for the next until the server stops."""
        try:
            if error is None:
                begin(call)
            elif not isinstance(error, cygrpc._RequestCallError):
                raise error
            elif not self.is_running():  # otherwise the core failed this one request for a call
                self.end(None)
                return
            self.accept(method, begin)
        except Exception as failed:  # noqa: BLE001  whatever it was, it is reported to `lost`
            self.end(failed)

    def end(self, error: Exception | None) -> None:
        """Stop accepting calls; the first reason given is kept."""
        if self.accepting.done():
            return
        if error is None:
            self.accepting.set_result(None)
        else:
            self.accepting.set_exception(error)

    def show(self, take: Callable[[Any, Any], None], call: Any) -> None:
        take(call, cygrpc._ServicerContext(call, None, None, self.loop))

    def begin_with(self, method: tuple[str, _Fixed], call: Any, context: Any) -> None:  # noqa: ARG002
        self.begin(*method, call)

    def rebuff(self, wall: Wall, call: Any, context: Any) -> None:
        self.turn_away(call, wall.refuse(context))

    def enter(self, path: str, resolver: _Fixed, call: Any, ticket: Ticket) -> None:
        """Begin a call with its ticket, which is torn when the call is over."""
        own = copy_context()
        own.run(TICKET.set, ticket)
        self.begin(path, resolver, call, own).add_done_callback(partial(torn, ticket))

    def begin(self, path: str, resolver: _Fixed, call: Any, context: Context | None = None) -> asyncio.Task[None]:
        """Start the task in which the library handles a call to its end."""
        handling = cygrpc._handle_rpc(path, resolver, (), call, self.loop, False)
        return self.run(cygrpc._schedule_rpc_coro(handling, call, self.loop, path), context)

    def run(self, work: Any, context: Context | None = None) -> asyncio.Task[None]:
        task = self.loop.create_task(work, context=context)
        self.calls.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self.calls.discard)
        return task

    def turn_away(self, call: Any, refusal: Refusal) -> None:
        """End a call with a status and nothing else, at half the cost of a handler and its abort."""
        first = cygrpc.SendInitialMetadataOperation((), 0)
        code = refusal.code.value[0]
        sending = cygrpc._send_error_status_from_server(call, code, refusal.details, refusal.trailing, first, self.loop)
        drive(sending, self.turned_away)

    def turned_away(self, sent: Any, error: Exception | None) -> None:  # noqa: ARG002
        if error is not None and not isinstance(error, cygrpc.ExecuteBatchError):  # that one: the client has left
            self.loop.call_exception_handler({"message": "a call could not be refused", "exception": error})


def drive(work: Coroutine[Any, Any, Any], done: Done) -> None:
    """Run one of the library's coroutines without a task, at a third of its cost; `done` gets the result or the error.

    The coroutine must await futures of the running loop and nothing else, and it cannot be cancelled.
    """
    try:
        awaited = work.send(None)
    except StopIteration as end:
        done(end.value, None)
    except Exception as error:  # noqa: BLE001  it goes to `done`
        done(None, error)
    else:
        awaited._asyncio_future_blocking = False  # as asyncio's own tasks do
        awaited.add_done_callback(lambda _: drive(work, done))


def as_handler(what: Any) -> Any:
    """The handler that the library itself would call for a method."""
    return what.handler() if isinstance(what, Wall) else what


def torn(ticket: Ticket, task: asyncio.Task[None]) -> None:  # noqa: ARG001
    ticket.tear()


class _Fixed:
    """A resolver that finds the same handler for every call."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def resolve_handler(self, details: Any) -> Any:  # noqa: ARG002
        return self.handler


class _Dispatch(grpc.GenericRpcHandler):
    """A lookup of handlers by path, for a library that accepts calls by itself."""

    def __init__(self, methods: Mapping[str, Any], other: Any) -> None:
        self.methods, self.other = methods, other

    def service(self, details: Any) -> Any:
        return self.methods.get(details.method, self.other)
