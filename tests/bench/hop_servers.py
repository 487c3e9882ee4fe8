"""The plain servers that the hop's benchmark holds the guard against, each a process of its own.

    python -m tests.bench.hop_servers model                     answers every ModelInfer with the same numbers
    python -m tests.bench.hop_servers proxy --upstream ADDRESS  passes calls on as bytes, by grpc.aio and uvloop

The proxy is the least that a hop in the guard's runtime can be: metadata, deadline, body and status pass, and nothing
is looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

import grpc
import grpc.aio

from guard.serve.event_loop import EventLoop
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import (
    ModelInferResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerReadyResponse,
)

CLASSES = 10
OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


def infer_answer() -> bytes:
    """A ModelInferResponse of one item's logits, raw."""
    response = ModelInferResponse(model_name="model", id="1")
    response.outputs.add(name="logits", datatype="FP32", shape=[1, CLASSES])
    response.raw_output_contents.append(bytes(4 * CLASSES))
    body: bytes = response.SerializeToString()
    return body


class Model(grpc.GenericRpcHandler):
    """A model server that spends nothing on its model."""

    def __init__(self) -> None:
        self.answers = {
            path("ModelInfer"): infer_answer(),
            path("ServerReady"): ServerReadyResponse(ready=True).SerializeToString(),
            path("ModelReady"): ModelReadyResponse(ready=True).SerializeToString(),
            path("ModelMetadata"): ModelMetadataResponse().SerializeToString(),
        }

    def service(self, details: Any) -> Any:
        body = self.answers.get(details.method)

        async def answer(request: bytes, context: Any) -> bytes | None:
            return body

        return None if body is None else grpc.unary_unary_rpc_method_handler(answer)


class IdentityProxy(grpc.GenericRpcHandler):
    """A proxy of unary calls that looks at nothing."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def service(self, details: Any) -> Any:
        start: Any = self.channel.unary_unary(details.method)

        async def forward(request: bytes, context: Any) -> bytes:
            metadata = tuple((key, value) for key, value in context.invocation_metadata() if key != "user-agent")
            call = start(request, metadata=grpc.aio.Metadata(*metadata), timeout=context.time_remaining())
            try:
                body: bytes = await call
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
            if initial := await call.initial_metadata():
                await context.send_initial_metadata(tuple(initial))
            context.set_trailing_metadata(tuple(await call.trailing_metadata() or ()))
            return body

        return grpc.unary_unary_rpc_method_handler(forward)


async def serve(role: str, upstream: str | None) -> None:
    server = grpc.aio.server(options=OPTIONS)
    async with grpc.aio.insecure_channel(upstream or "127.0.0.1:9", options=OPTIONS[1:]) as channel:
        server.add_generic_rpc_handlers([Model() if role == "model" else IdentityProxy(channel)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(json.dumps({"event": "listening", "inference": f"127.0.0.1:{port}"}), file=sys.stderr, flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("role", choices=("model", "proxy"))
    parser.add_argument("--upstream")
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(serve(given.role, given.upstream))
