"""The service of ModelInfer over gRPC: it parses and answers; what happens in between is `inference`.

Rule 1: errors become gRPC statuses in `outermost`, and nowhere else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import MalformedRequest
from guard.manifest import InputSpec, OutputSpec
from guard.serve.early_answer import in_sequence
from guard.serve.exchange import AskedModel
from guard.serve.grpc import decode
from guard.serve.grpc.acceptor import TICKET
from guard.serve.grpc.answer import prediction
from guard.serve.grpc.call import Call
from guard.serve.grpc.door import Door
from guard.serve.grpc.gate import Admitted, InferGate, TooLate, Uncounted
from guard.serve.grpc.gatekeeper import Gate
from guard.serve.grpc.listener import Methods
from guard.serve.grpc.scan import names_of
from guard.serve.grpc.upstream import Answer, Upstream, path
from guard.serve.inference import Inference
from guard.serve.models import ModelTable
from guard.serve.tensor import Decoded


@dataclass
class GrpcExchange:
    """A ModelInfer message and its answer, as inference sees them."""

    call: Call
    upstream: Upstream | None  # None: what passes is forwarded by others
    request: bytes  # what is forwarded: as it came, unless it is repaired
    message: decode.Request | None = field(default=None, init=False)
    fault: str | None = field(default=None, init=False)  # why it cannot be decoded: an error would keep its frames

    @property
    def size_bytes(self) -> int:
        return len(self.request)

    @property
    def versions(self) -> None:
        """The versions that this protocol's model server has: those that `Models` knows."""

    def named(self) -> AskedModel:
        try:
            self.message = decode.parse(self.request)
        except MalformedRequest as error:
            if (names := names_of(self.request)) is None:
                raise
            self.fault = str(error)
            return AskedModel(*names)
        message = self.message.message
        return AskedModel(message.model_name, message.model_version, message.id, in_sequence(message.parameters))

    @property
    def parsed(self) -> decode.Request:
        if self.fault is not None:
            raise MalformedRequest(self.fault)
        if self.message is None:
            raise RuntimeError("the message was not parsed")
        return self.message

    def decode(self, spec: InputSpec, *, max_items: int) -> Decoded:
        return decode.decode(self.parsed, spec, max_items=max_items)

    def decoder(self, spec: InputSpec, *, max_items: int) -> Callable[[], Decoded]:
        return partial(decode.decode, self.parsed, spec, max_items=max_items)

    def repair(self, images: NDArray[Any], decoded: Decoded, spec: InputSpec) -> None:
        self.request = decode.encode(self.parsed.message, images, spec, decoded.form)

    async def ask(self) -> Answer:
        """Forward the message. Raises as `Upstream.unary`."""
        if self.upstream is None:
            raise RuntimeError("this request is forwarded by others")
        return await self.upstream.unary(
            path("ModelInfer"), self.request, self.call.upward, self.call.forward_timeout_s()
        )

    def predicted(self, answer: Answer, output: OutputSpec, items: int) -> NDArray[np.int64] | None:
        with suppress(ValueError, OverflowError):  # whatever the upstream sent, it goes to the client
            return prediction(answer.body, output, items)
        return None

    def answer_bytes(self, answer: Answer) -> int:
        return len(answer.body)


@dataclass
class GivenExchange(GrpcExchange):
    """A message that another request carries, which `give` takes out of it, or refuses."""

    give: Callable[[], bytes] = bytes
    given_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        return self.given_bytes

    def named(self) -> AskedModel:
        self.request = self.give()
        return super().named()


@dataclass(kw_only=True)
class Service:
    """The handler of ModelInfer, the one method that carries tensors."""

    inference: Inference
    upstream: Upstream
    door: Door

    def __post_init__(self) -> None:
        self.models, self.metrics = self.inference.models, self.inference.metrics
        self.gate = InferGate(self.inference.queues, 0.0, self.ended)
        self.models.listeners.append(self.follow)
        self.follow(self.models.table)

    def follow(self, table: ModelTable) -> None:
        """Set what the gate asks before a request's model is known: by all models together."""
        self.gate.budget_s, self.gate.passes_late = table.inspect_timeout_s, table.passes_late
        self.gate.is_open = table.strictest_mode == "off"

    def methods(self) -> Methods:
        """The handler of ModelInfer; every other method is `Passage`'s."""
        return {path("ModelInfer"): self.door.unary(self.model_infer, begun=self.begun, ended=self.ended)}

    def gates(self) -> dict[str, Gate]:
        """The gates that are asked before a call is handled; none where the guard starts in mode `off`."""
        return {} if self.gate.is_open else {path("ModelInfer"): self.gate}

    def begun(self, call: Call) -> None:
        """Find the place that the gate gave a call, or take one where there is no gate. Raises Overloaded."""
        given = TICKET.get()
        if not isinstance(given, Uncounted | TooLate | Admitted):
            self.inference.enter(call)
            return
        self.inference.begin(call, time.monotonic())
        if isinstance(given, TooLate):
            call.inspect_by = -math.inf
        elif isinstance(given, Admitted):
            call.place, call.inspect_by, call.budget_s = given.place, given.inspect_by, given.budget_s
            self.inference.be_patient(call)

    async def model_infer(self, request: bytes, call: Call) -> bytes:
        answer = await self.inference.infer(GrpcExchange(call, self.upstream, request), call)
        return await call.deliver(answer)

    async def inspect_alone(self, call: Call, message: Callable[[], bytes], size_bytes: int) -> None:
        """Inspect the request of so many bytes that `message` gives or refuses, for a door that does not forward it.

        Raises:
            GuardError: it may not pass; where it may, the verdict is in the call.
        """
        await self.inference.inspect_alone(GivenExchange(call, None, b"", message, size_bytes), call)

    def ended(self, call: Call) -> None:
        """Count a call that is over."""
        self.inference.ended(call)
        self.metrics.handled("ModelInfer", call.code)
