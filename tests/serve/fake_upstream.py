"""A model server that a test can turn: it answers, hangs, fails, disagrees, or is away. Real gRPC, a real port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np

from guard.serve.grpc import decode
from guard.serve.grpc.wire.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from guard.serve.tensor import DTYPES
from tests.serve import tiny_bundle

PREFIX = "/inference.GRPCInferenceService/"


def tiny_metadata() -> ModelMetadataResponse:
    kind = ModelMetadataResponse.TensorMetadata
    return ModelMetadataResponse(
        name=tiny_bundle.MODEL_NAME,
        inputs=[kind(name="input", datatype="FP32", shape=[-1, *tiny_bundle.SHAPE])],
        outputs=[kind(name="logits", datatype="FP32", shape=[-1, tiny_bundle.CLASSES])],
    )


@dataclass
class FakeUpstream(grpc.GenericRpcHandler):
    """Every method, as bytes; what came is kept."""

    ready: bool = True
    hang: bool = False  # hold every call
    hang_infer: bool = False
    garbage: str | None = None  # the method that is answered with no message of the protocol
    fail: tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]] | None = None  # answer to ModelInfer
    wrong: bool = False  # name another class
    metadata: ModelMetadataResponse = field(default_factory=tiny_metadata)
    extensions: tuple[str, ...] = ()  # of ServerMetadata
    initial: tuple[tuple[str, str | bytes], ...] = ()
    trailing: tuple[tuple[str, str | bytes], ...] = ()
    requests: list[bytes] = field(default_factory=list)  # of ModelInfer
    headers: list[dict[str, str | bytes]] = field(default_factory=list)
    remaining: list[float | None] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    cancelled: int = 0

    def service(self, details: Any) -> Any:
        method = details.method.removeprefix(PREFIX)
        self.calls.append(method)
        if method == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self.stream)

        async def handler(request: bytes, context: Any) -> bytes:
            return await self.answer(method, request, context)

        return grpc.unary_unary_rpc_method_handler(handler)

    async def answer(self, method: str, request: bytes, context: Any) -> bytes:
        if self.hang or (self.hang_infer and method == "ModelInfer"):
            try:
                while self.hang or self.hang_infer:
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if method == self.garbage:
            return b"\xff\xff\xff"
        if method == "ServerReady":
            return ServerReadyResponse(ready=self.ready).SerializeToString()
        if method == "ModelReady":
            return ModelReadyResponse(ready=self.ready).SerializeToString()
        if method == "ModelMetadata":
            return self.metadata.SerializeToString()
        if method == "ServerMetadata":
            return ServerMetadataResponse(name="fake", extensions=self.extensions).SerializeToString()
        if method == "ModelInfer":
            return await self.infer(request, context)
        if method == "ModelConfig":
            return b"config of " + request
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no {method}")
        raise AssertionError("abort() has raised")

    async def infer(self, request: bytes, context: Any) -> bytes:
        self.requests.append(request)
        self.headers.append(dict(context.invocation_metadata()))
        self.remaining.append(context.time_remaining())
        if self.fail:
            await context.abort(*self.fail)
        if self.initial:
            await context.send_initial_metadata(self.initial)
        context.set_trailing_metadata(self.trailing)
        return self.infer_response(request)

    def infer_response(self, request: bytes) -> bytes:
        message = ModelInferRequest.FromString(request)
        images = received(request)
        matrix, bias = tiny_bundle.weights()
        logits = images.reshape(len(images), -1).astype(np.float32) @ matrix + bias
        response = ModelInferResponse(model_name=message.model_name, id=message.id)
        tensor = response.outputs.add(name="logits", datatype="FP32", shape=logits.shape)
        logits = -logits if self.wrong else logits
        if message.raw_input_contents:
            response.raw_output_contents.append(logits.tobytes())
        else:
            tensor.contents.fp32_contents.extend(logits.ravel().tolist())
        return response.SerializeToString()

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.headers.append(dict(context.invocation_metadata()))
        context.set_trailing_metadata(self.trailing)
        async for request in requests:
            yield b"streamed " + request


def received(request: bytes) -> Any:
    """The input tensor in a ModelInfer request, read without our decoder's checks."""
    message = ModelInferRequest.FromString(request)
    tensor = message.inputs[0]
    dtype = DTYPES[tensor.datatype]
    if message.raw_input_contents:
        flat = np.frombuffer(message.raw_input_contents[0], dtype)
    else:
        flat = np.array(getattr(tensor.contents, decode.TYPED_FIELD[tensor.datatype]), dtype)
    return flat.reshape(tuple(tensor.shape))


@asynccontextmanager
async def listening(
    upstream: FakeUpstream,
    address: str = "127.0.0.1:0",
    *,
    credentials: grpc.ServerCredentials | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> AsyncIterator[str]:
    """The fake listens within the block, with TLS if it has credentials; leaving it kills every connection at once."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1), *options])
    server.add_generic_rpc_handlers([upstream])
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
