"""A model server that answers ModelStreamInfer as a test wants it: wrapped or bare, slowly, several times, or never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc

from guard.serve.grpc.reply_shape import INFER_RESPONSE_TAG, length
from guard.serve.grpc.wire.inference_pb2 import ServerMetadataResponse
from tests.serve.fake_upstream import FakeUpstream


def wrapped(response: bytes) -> bytes:
    """A ModelStreamInferResponse around a serialized ModelInferResponse."""
    return INFER_RESPONSE_TAG + length(response) + response


@dataclass
class StreamingUpstream(FakeUpstream):
    """A fake upstream whose streams answer in the protocol; the stream's messages are in `requests`."""

    shape: Literal["wrapped", "bare"] = "wrapped"
    server: str = "fake"  # its name in ServerMetadata
    delay_s: float = 0.0  # before each reply
    replies: int = 1  # to each message
    stop_after: int | None = None  # messages, after which it ends the stream
    stop_code: grpc.StatusCode = grpc.StatusCode.OK
    open_streams: int = 0
    paused: asyncio.Event | None = None  # nothing is read until it is set
    read_bytes: int = 0
    metadata_calls: int = field(default=0)

    async def answer(self, method: str, request: bytes, context: Any) -> bytes:
        if method == "ServerMetadata":
            self.metadata_calls += 1
            return bytes(ServerMetadataResponse(name=self.server).SerializeToString())
        return await super().answer(method, request, context)

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.headers.append(dict(context.invocation_metadata()))
        self.remaining.append(context.time_remaining())
        context.set_trailing_metadata(self.trailing)
        if self.initial:
            await context.send_initial_metadata(self.initial)
        self.open_streams += 1
        try:
            if self.paused is not None:
                await self.paused.wait()
            count = 0
            async for request in requests:
                self.requests.append(request)
                self.read_bytes += len(request)
                count += 1
                for _ in range(self.replies):
                    await asyncio.sleep(self.delay_s)
                    response = self.infer_response(request)
                    yield wrapped(response) if self.shape == "wrapped" else response
                if count == self.stop_after:
                    if self.stop_code is not grpc.StatusCode.OK:
                        await context.abort(self.stop_code, "the model has had enough")
                    return
        finally:
            self.open_streams -= 1
