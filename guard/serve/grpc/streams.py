"""ModelStreamInfer: each message of a stream is inspected as a ModelInfer request is, and what passes goes on in order.

How it works. One task reads the client's messages, has each inspected and passes it on; the other delivers the model
server's replies as bytes. A stream's next message is read once the one before it was decided, so a stream has at most
one message in the guard, however many its client sends, and gRPC's flow control holds the client back. A message that
may not pass is answered in the stream where the model server's replies can hold an error (see `reply_shape`). Where
they cannot, where it is not known, or where the client asks for it (`triton_grpc_error: true`), the stream ends with
the status, after the replies to what had passed.

Rule 1: what was inspected is what is passed on: the bytes as they came, in their order; REPAIR alone re-encodes.
Rule 2: the guard's marks are in metadata only; no byte of a reply is changed.
Rule 3: each message is counted once, as a request is; the stream itself is counted as a call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from guard.errors import Expired, GuardError, NotAllowed, Unchecked
from guard.policy import GRAVITY, Action
from guard.serve.admission import Admission
from guard.serve.grpc.call import Call
from guard.serve.grpc.door import SHUTTING_DOWN, Door
from guard.serve.grpc.listener import Methods
from guard.serve.grpc.metadata import downwards
from guard.serve.grpc.passage import STREAM
from guard.serve.grpc.reply_order import PATIENCE_S, ReplyOrder
from guard.serve.grpc.reply_shape import ReplyShape, error_reply, shape_of_reply, shape_of_server
from guard.serve.grpc.service import GrpcExchange
from guard.serve.grpc.upstream import UPSTREAM_ENDED, Upstream, end_in_core, path, write_to
from guard.serve.grpc.wire.inference_pb2 import ServerMetadataRequest, ServerMetadataResponse
from guard.serve.inference import Inference
from guard.serve.inference_call import UNCHECKED
from guard.serve.outcome import Undecided

STATUS_WANTED = ("triton_grpc_error", "true")  # Triton's header for errors as a status
PLACE_SHARE = 0.5  # of the time for an inspection, that a message may wait for its place among those inspected
PLACE_POLL_S = 0.005


class ReplyShapes:
    """The shape of the model server's replies, as the operator sets it, or as its name or its last replies show."""

    def __init__(self, upstream: Upstream, setting: str) -> None:
        self.upstream = upstream
        self.fixed = None if setting == "auto" else ReplyShape(setting)
        self.shown: ReplyShape | None = None

    def note(self, reply: bytes) -> bool:
        """Learn from a reply, and return whether it showed a shape."""
        shape = shape_of_reply(reply)
        if shape is not None:
            self.shown = shape
        return shape is not None

    async def known(self) -> ReplyShape | None:
        """The shape, by the model server's name where no reply has shown it yet; None where nothing tells."""
        if self.fixed is None and self.shown is None:
            try:
                answer = await self.upstream.ask("ServerMetadata", ServerMetadataRequest())
                self.shown = shape_of_server(ServerMetadataResponse.FromString(answer).name)
            except (GuardError, grpc.aio.AioRpcError, ValueError):
                return None
        return self.fixed or self.shown


@dataclass
class Streams:
    """The handler of ModelStreamInfer."""

    inference: Inference
    upstream: Upstream
    door: Door
    replies: str  # their shape, as the operator sets it

    def __post_init__(self) -> None:
        self.metrics = self.inference.metrics
        self.shapes = ReplyShapes(self.upstream, self.replies)

    def methods(self) -> Methods:
        return {path(STREAM): self.door.streaming(self.stream_infer, ended=self.ended)}

    async def stream_infer(self, call: Call) -> None:
        """Pass messages and replies both ways until the upstream ends the call or the client leaves."""
        if self.door.closed:
            raise Unchecked(SHUTTING_DOWN, elsewhere=True)
        with self.door.stream_place(call):
            await StreamPassage(self, call).run()

    def ended(self, call: Call) -> None:
        self.metrics.calls.labels(STREAM, "inspected" if call.end == "answered" else call.end).inc()
        self.metrics.handled(STREAM, call.code)


class StreamPassage:
    """The passage of one stream, from its first message to its end."""

    def __init__(self, streams: Streams, call: Call) -> None:
        self.streams, self.inference, self.door, self.call = streams, streams.inference, streams.door, call
        self.order = ReplyOrder(call.context.write)
        self.messages = 0
        self.needed: Admission | None = None  # the queue that the last message was for
        self.refusal: GuardError | None = None  # with which the stream ends
        wants = call.context.invocation_metadata() or ()
        self.wants_status = any((key, value) == STATUS_WANTED for key, value in wants)

    async def run(self) -> None:
        """Run both directions to the end. Raises what the client's call ends with, unless it ends well."""
        upstream = self.streams.upstream.stream(path(STREAM), self.call.upward, self.call.forward_timeout_s())
        upwards = asyncio.create_task(self.pass_upwards(upstream))
        try:
            await self.pass_downwards(upstream)
        except (asyncio.CancelledError, grpc.aio.AioRpcError) as ended:
            if self.refusal is None:
                if upwards.done() and not upwards.cancelled() and (error := upwards.exception()) is not None:
                    raise error from None  # our own way of ending the upstream's call
                if isinstance(ended, grpc.aio.AioRpcError):
                    raise self.streams.upstream.judged_now(ended) from ended
                raise
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        finally:
            end_in_core(upstream)
            upwards.cancel()
            await asyncio.gather(upwards, return_exceptions=True)
            await self.order.close()
        if self.refusal is not None:
            raise self.refusal

    async def pass_upwards(self, upstream: Any) -> None:
        """Pass on the client's messages that may pass; a refusal that ends the stream ends the upstream's input."""
        try:
            while self.refusal is None and (came := await self.call.context.read()) is not grpc.aio.EOF:
                self.messages += 1
                arrived = [came]
                del came
                if not await self.pass_message(arrived, upstream):
                    return
            await upstream.done_writing()
        except UPSTREAM_ENDED:
            return  # `pass_downwards` tells how
        except BaseException:
            end_in_core(upstream)
            raise
        if self.refusal is not None:  # what had passed is still answered, for a while
            await asyncio.sleep(PATIENCE_S)
            end_in_core(upstream)

    async def pass_message(self, arrived: list[bytes], upstream: Any) -> bool:
        """Inspect a message and pass it on, or refuse it; False where the upstream takes no more.

        It is taken out of `arrived`, so that it is not kept packed beside what it unpacks to.
        """
        call = self.call
        message = Call(call.context, deadline=call.deadline, id=call.id, principal=call.principal, number=self.messages)
        with self.counted(message):
            try:
                async with self.door.held(arrived.pop()) as request:
                    return await self.pass_on(request, message, upstream)
            except GuardError as error:
                if isinstance(error, Expired):
                    message.ended(error)
                    raise
                await self.refuse(error, message)
        return True

    async def pass_on(self, request: bytes, message: Call, upstream: Any) -> bool:
        """Inspect a message that is unpacked; it is held until its refusal, too, is over, since errors refer to it."""
        try:
            forward = await self.decide(request, message)
            self.order.passed_messages += 1
            await write_to(upstream, forward)
        except UPSTREAM_ENDED as error:
            self.order.passed_messages -= 1
            message.fail(error)
            return False
        except Expired:
            raise
        except GuardError as error:
            await self.refuse(error, message)
        return True

    async def decide(self, request: bytes, message: Call) -> bytes:
        """Inspect a message, and return what is passed on for it. Raises GuardError."""
        await self.wait_for_place(message)
        exchange = GrpcExchange(message, None, request)
        outcome = await self.inference.placed(exchange, message)
        if message.guarded is not None:
            self.needed = message.guarded.loaded.admission
        if isinstance(outcome, Undecided):
            raise NotAllowed("a stream's answers are not held, as forward = 'before' wants them; send ModelInfer calls")
        self.inference.settle(outcome, message)
        self.call.told = graver(self.call.told, message.told)
        return exchange.request

    async def wait_for_place(self, message: Call) -> None:
        """Wait until the message finds a place among those that are inspected. Raises Overloaded."""
        queues, budget_s = self.inference.queues, self.inference.budget_s
        while not self.inference.off and (waited_s := time.monotonic() - message.began) < PLACE_SHARE * budget_s:
            if queues.is_in_time(self.needed, message.deadline - time.monotonic(), 0, budget_s - waited_s):
                break
            await asyncio.sleep(PLACE_POLL_S)
        self.inference.enter(message)
        if message.patience is not None:
            message.patience.cancel()  # it is here
        message.inspect_by -= time.monotonic() - message.began  # the wait is a part of the guard's time

    async def refuse(self, error: GuardError, message: Call) -> None:
        """Answer a message that may not pass: in the stream where its replies can hold that, else at its end."""
        message.ended(error)
        if message.told is not None:
            self.call.told = graver(self.call.told, message.told)
        if self.wants_status or await self.streams.shapes.known() is not ReplyShape.WRAPPED:
            self.refusal = error
            return
        text = str(error) if message.name in str(error) else f"{error}; guard-id {message.name}"
        await self.order.refuse(error_reply(text, message.message_id))

    @contextmanager
    def counted(self, message: Call) -> Iterator[None]:
        """Count the message once it is over, by what became of it."""
        try:
            yield
        except asyncio.CancelledError:
            message.end = "cancelled" if time.monotonic() < message.deadline else "expired"
            raise
        except Exception as error:
            if message.error is None:
                message.ended(error)
            raise
        finally:
            self.inference.passed_on(message)
            message.forget()

    async def pass_downwards(self, upstream: Any) -> None:
        """Pass the upstream's replies and metadata to the client. Raises grpc.aio.AioRpcError where the call failed."""
        initial = downwards(await upstream.initial_metadata())
        if initial and not self.order.begun:
            await self.call.context.send_initial_metadata(initial)
        shown = False
        while (reply := await upstream.read()) is not grpc.aio.EOF:
            shown = shown or self.streams.shapes.note(reply)
            await self.order.deliver(reply)
        trailing = downwards(await upstream.trailing_metadata())
        await self.order.flush()
        self.call.context.set_trailing_metadata((*trailing, *self.call.marks))


def graver(one: str | None, other: str | None) -> str | None:
    """The graver of two verdicts that a client may know; what passed uninspected is graver than all but a rejection."""
    ranks = {action.value: 2 * rank for action, rank in GRAVITY.items()}
    ranks[UNCHECKED] = ranks[Action.REJECT.value] - 1
    return max((told for told in (one, other) if told is not None), key=ranks.__getitem__, default=None)
