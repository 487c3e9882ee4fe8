"""A model server by hand that does all that the protocol allows and few servers do."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest, ModelInferResponse
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream

UNKNOWN_FIELD = b"\xba\x3e\x03abc"  # number 999: of a later version of the protocol
DETAILS = b"\x08\x05\x12\x04gone"  # a google.rpc.Status that is no guard's


@dataclass
class OddUpstream(FakeUpstream):
    """Metadata of every kind, dates that change, unknown fields, texts in UTF-8, answers without an order."""

    initial: tuple[tuple[str, str | bytes], ...] = (("x-server", "odd"), ("x-server", "twice"), ("x-first-bin", b"\0"))
    extensions: tuple[str, ...] = ("statistics", "system_shared_memory", "classification")
    count: Any = field(default_factory=itertools.count)

    async def answer(self, method: str, request: bytes, context: Any) -> bytes:
        number = next(self.count)
        if method == "ModelStatistics":
            return b"\x08" + bytes([number % 128])
        if method == "ModelInfer":
            return await self.infer_oddly(request, number, context)
        if method == "ModelConfig":
            context.set_trailing_metadata((("x-config-bin", bytes(range(256))),))
            return b"config" + UNKNOWN_FIELD
        return await super().answer(method, request, context)

    async def infer_oddly(self, request: bytes, number: int, context: Any) -> bytes:
        try:
            message = ModelInferRequest.FromString(request)
        except DecodeError:
            await context.abort(grpc.StatusCode.DATA_LOSS, "unlesbar: „Müll“", (("x-place-bin", b"\1\2"),))
        if message.model_name != tiny_bundle.MODEL_NAME:
            trailing = (("grpc-status-details-bin", DETAILS), ("x-seen", "no"), ("date", str(number)))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"kein Modell „{message.model_name}“ ✗", trailing)
        if not message.inputs:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "")
        await context.send_initial_metadata(self.initial)
        context.set_trailing_metadata((("x-count", str(number)), ("x-kept", "one"), ("x-kept", "two")))
        response = ModelInferResponse.FromString(self.infer_response(request))
        for name in itertools.islice(itertools.cycle("abcdefgh"), number % 8, number % 8 + 8):
            response.parameters[name].string_param = name  # in another order each time
        return bytes(response.SerializeToString()) + UNKNOWN_FIELD

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield self.infer_response(request)
            yield self.infer_response(request)
        await context.abort(grpc.StatusCode.ABORTED, "zu viel", self.trailing)
