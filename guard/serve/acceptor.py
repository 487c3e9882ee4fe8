"""The part of grpc.aio that takes calls from gRPC's core, made to outlive what a client can send.

How it works. grpc.aio takes every call in one coroutine, and decodes the call's path there: a path that is not UTF-8
raises, the coroutine ends, and the library answers by cancelling all calls and closing the port. Here each known method
is registered with the core, which compares paths as bytes; whatever is not registered goes to one handler that needs no
path. So no byte of a client is decoded in the coroutines that accept. A call waits in the core, unseen and uncounted,
until somebody asks for it, so requests for calls stand ready by the dozen. A flood of calls must not keep those that
are being handled from getting on, nor hold up whoever calls once: at most `SLICE` calls begin in one turn of the event
loop. The others wait in a pile, and the newest is taken first, since it has the longest to live.

Rule 1: nothing that a client sends ends the acceptance of calls.
Rule 2: should it end all the same, `lost` is told, and calls in flight go on: what to do is the listener's to decide.
Rule 3: the library's private parts are used only where they look as they did when this was written (`KNOWN`).
        Elsewhere the library accepts by itself, and rule 2 holds alone.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # it ships no types

DEPTH = 32  # calls of one method that the core hands over without being asked again
DEPTH_AT_GATE = 256
HOLD_TICK_S = 0.01
SLICE = 4  # calls that begin, or are refused, in one turn of the event loop
UNREGISTERED = "unregistered"  # stands for the path of every call whose method nobody registered

KNOWN = {  # private function -> its parameters, as this file calls it
    "_handle_rpc": "method_name method_resolver interceptors rpc_state loop concurrency_exceeded",
    "_schedule_rpc_coro": "rpc_coro rpc_state loop method_name",
    "_send_error_status_from_server": "grpc_call_wrapper code details trailing_metadata send_initial_metadata_op loop",
}
KNOWN_METHODS = ("_make_request_call_future", "_request_call", "_request_registered_call", "_server_main_loop")

Options = Sequence[tuple[str, Any]]
Lost = Callable[[BaseException], None]


class Ticket(Protocol):
    """What a gate gives to a call that it lets in; it is torn when the call is over."""

    def tear(self) -> None: ...


@dataclass(frozen=True)
class Refusal:
    """How a call ends that a gate does not let in."""

    code: grpc.StatusCode
    details: str
    trailing: tuple[tuple[str, str | bytes], ...]
    hold_s: float = 0.0  # before the call hears of it
    told: Callable[[], None] | None = None  # is called when it does


Begin = Callable[[Any], object]  # what happens to a call that was taken
Gate = Callable[[Any], Ticket | Refusal]  # of a call's ServicerContext
TICKET: ContextVar[Ticket | None] = ContextVar("TICKET", default=None)  # of the call that is being handled


def is_known() -> bool:
    """Whether the installed grpcio looks as `Acceptor` expects it."""
    try:
        found = {name: " ".join(inspect.signature(getattr(cygrpc, name)).parameters) for name in KNOWN}
    except (AttributeError, TypeError, ValueError):
        return False
    return found == KNOWN and all(hasattr(cygrpc.AioServer, name) for name in KNOWN_METHODS)


class _CoreStartedError(Exception):
    """Leaves the library's own accepting coroutine once it has started the core."""


class Watched(cygrpc.AioServer):  # type: ignore[misc]  # it ships no types
    """The library's server, except that the end of its acceptance cancels nothing and `lost` hears of it."""

    def __init__(self, options: Options, lost: Lost) -> None:
        self.loop = asyncio.get_running_loop()
        super().__init__(self.loop, None, (), (), tuple(options), None)
        self.lost = lost

    def serve(self, methods: Mapping[str, Any], other: Any, gates: Mapping[str, Gate]) -> None:  # noqa: ARG002
        """Answer each path of `methods` by its handler, and every other path by `other`.

        Where the library accepts by itself there are no gates, and so no tickets: what a gate would have refused, the
        handler has to.
        """
        self.add_generic_rpc_handlers([_Dispatch(methods, other)])

    def listen(self, address: str) -> int:
        """The port really bound. Raises RuntimeError where it cannot be."""
        port: int = self.add_insecure_port(address.encode())
        return port

    def _serving_task_crash_handler(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self.is_running():
            self.lost(error)


class Acceptor(Watched):
    """A server that takes calls by registered method, and never decodes a path."""

    def serve(self, methods: Mapping[str, Any], other: Any, gates: Mapping[str, Gate]) -> None:
        """As `Watched`'s; a path's gate is asked before anything is spent on a call."""
        self.resolvers = {path.encode(): (path, _Fixed(handler)) for path, handler in methods.items()}
        self.other = _Fixed(other)
        self.gates = dict(gates)
        self.held: dict[int, list[tuple[Any, Refusal]]] = {}  # by the tick in which they are told
        self.calls: set[asyncio.Task[None]] = set()
        self.add_registered_method_handlers(dict(methods))

    def _make_request_call_future(self, method: bytes | None) -> Any:  # noqa: ARG002  the library's signature
        raise _CoreStartedError

    async def _server_main_loop(self, started: asyncio.Future[bool]) -> None:
        with suppress(_CoreStartedError):
            await super()._server_main_loop(started)
        porter = _Porter(self.loop)
        async with asyncio.TaskGroup() as group:
            for method, (path, resolver) in self.resolvers.items():
                begin: Begin = partial(self.begin, path, resolver)
                if (gate := self.gates.get(path)) is not None:
                    begin = partial(self.pass_gate, gate, path, resolver)
                for _ in range(DEPTH if gate is None else DEPTH_AT_GATE):
                    group.create_task(self.accept(method, partial(porter.take, begin)))
            for _ in range(DEPTH):
                group.create_task(
                    self.accept(None, partial(porter.take, partial(self.begin, UNREGISTERED, self.other)))
                )

    async def accept(self, method: bytes | None, begin: Begin) -> None:
        """Take one call after the other until the server stops."""
        while True:
            try:
                call = await (self._request_call() if method is None else self._request_registered_call(method))
            except cygrpc._RequestCallError:  # the server stops, or the core failed this one request for a call
                if not self.is_running():
                    return
                continue
            begin(call)

    def pass_gate(self, gate: Gate, path: str, resolver: _Fixed, call: Any) -> None:
        """Begin with a call, or end it, as its gate says."""
        found = gate(cygrpc._ServicerContext(call, None, None, self.loop))
        if isinstance(found, Refusal):
            if found.hold_s:
                self.hold(call, found)
            else:
                self.run(self.turn_away(call, found))
            return
        context = copy_context()
        context.run(TICKET.set, found)
        self.begin(path, resolver, call, context).add_done_callback(partial(torn, found))

    def begin(self, path: str, resolver: _Fixed, call: Any, context: Context | None = None) -> asyncio.Task[None]:
        """Let the library handle a call, to its end."""
        handling = cygrpc._handle_rpc(path, resolver, (), call, self.loop, False)
        return self.run(cygrpc._schedule_rpc_coro(handling, call, self.loop, path), context)

    def run(self, work: Any, context: Context | None = None) -> asyncio.Task[None]:
        task = self.loop.create_task(work, context=context)
        self.calls.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self.calls.discard)
        return task

    def hold(self, call: Any, refusal: Refusal) -> None:
        """Turn a call away later; together with others, since what is sent alone costs half as much again."""
        tick = int((self.loop.time() + refusal.hold_s) / HOLD_TICK_S)
        if tick not in self.held:
            self.held[tick] = []
            self.loop.call_at(tick * HOLD_TICK_S, self.release, tick)
        self.held[tick].append((call, refusal))

    def release(self, tick: int) -> None:
        for call, refusal in self.held.pop(tick):
            self.run(self.turn_away(call, refusal))
            if refusal.told is not None:
                refusal.told()

    async def turn_away(self, call: Any, refusal: Refusal) -> None:
        """End a call with a status and nothing else: half of what a handler and its abort would cost."""
        first = cygrpc.SendInitialMetadataOperation((), 0)
        code = refusal.code.value[0]
        with suppress(cygrpc.ExecuteBatchError):  # the client has left
            await cygrpc._send_error_status_from_server(call, code, refusal.details, refusal.trailing, first, self.loop)


def torn(ticket: Ticket, task: asyncio.Task[None]) -> None:  # noqa: ARG001
    ticket.tear()


class _Porter:
    """Lets calls begin, a few in each turn of the event loop, the newest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.pile: list[tuple[Begin, Any]] = []
        self.left = SLICE  # of this turn

    def take(self, begin: Begin, call: Any) -> None:
        if self.left == SLICE:
            self.loop.call_soon(self.next_turn)
        if self.left > 0:
            self.left -= 1
            begin(call)
        else:
            self.pile.append((begin, call))

    def next_turn(self) -> None:
        self.left = SLICE
        if self.pile:
            self.loop.call_soon(self.next_turn)
        while self.pile and self.left > 0:
            self.left -= 1
            begin, call = self.pile.pop()
            begin(call)


class _Fixed:
    """Finds the same handler for whatever call."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def resolve_handler(self, details: Any) -> Any:  # noqa: ARG002
        return self.handler


class _Dispatch(grpc.GenericRpcHandler):
    """Finds handlers by path, for a library that accepts by itself."""

    def __init__(self, methods: Mapping[str, Any], other: Any) -> None:
        self.methods, self.other = methods, other

    def service(self, details: Any) -> Any:
        return self.methods.get(details.method, self.other)
