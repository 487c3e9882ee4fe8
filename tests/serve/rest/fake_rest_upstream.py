"""A V2 REST model server that a test can turn: it answers, hangs, fails, disagrees. Real HTTP, a real port.

It reads requests with json and numpy alone, so that what it saw can be held against what the guard inspected.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.serve import tiny_bundle

DTYPES = {"FP32": np.float32, "UINT8": np.uint8}


@dataclass
class FakeRestUpstream:
    """Every path that the protocol has; what came is kept."""

    ready: bool = True
    hang_infer: bool = False
    slow_s: float = 0.0  # before infer is answered
    wrong: bool = False  # name another class
    packed: bool = False  # answer in gzip
    fail: tuple[int, bytes] | None = None  # status and body of the answer to infer
    name: str = "fake"  # of the server
    versions: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ("binary_tensor_data",)
    more_headers: dict[str, str] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)  # of infer, as they came
    headers: list[list[tuple[str, str]]] = field(default_factory=list)
    tensors: list[NDArray[Any]] = field(default_factory=list)  # as a server reads them
    targets: list[str] = field(default_factory=list)  # of all requests: method, path, query
    cancelled: int = 0

    def application(self) -> Starlette:
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        return Starlette(
            routes=[
                *(Route(f"{path}/infer", self.infer, methods=["POST"]) for path in (model, version)),
                *(Route(f"{path}/ready", self.readiness) for path in (model, version)),
                *(Route(path, self.metadata) for path in (model, version)),
                Route("/v2/health/ready", self.readiness),
                Route("/v2", self.server),
                Route("/{path:path}", self.other, methods=["GET", "POST"]),
            ]
        )

    def note(self, request: Request) -> None:
        query = f"?{request.url.query}" if request.url.query else ""
        self.targets.append(f"{request.method} {request.scope['raw_path'].decode()}{query}")

    async def readiness(self, request: Request) -> Response:
        self.note(request)
        return Response(status_code=200 if self.ready else 503)

    async def server(self, request: Request) -> Response:
        self.note(request)
        return JSONResponse({"name": self.name, "version": "1", "extensions": list(self.extensions)})

    async def metadata(self, request: Request) -> Response:
        self.note(request)
        tensors = {
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, *tiny_bundle.SHAPE]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, tiny_bundle.CLASSES]}],
        }
        return JSONResponse({"name": request.path_params["model"], "versions": list(self.versions), **tensors})

    async def other(self, request: Request) -> Response:
        self.note(request)
        return JSONResponse({"other": request.url.path, "body": (await request.body()).decode("latin-1")})

    async def infer(self, request: Request) -> Response:
        self.note(request)
        body = await request.body()
        self.bodies.append(body)
        self.headers.append(request.headers.items())
        await asyncio.sleep(self.slow_s)
        if self.hang_infer:
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            self.cancelled += 1
        if self.fail is not None:
            return Response(self.fail[1], self.fail[0], {"content-type": "application/json", **self.more_headers})
        plain = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(
            request.headers.get("content-encoding", ""), bytes
        )(body)
        length = request.headers.get("inference-header-content-length")
        document = json.loads(plain if length is None else plain[: int(length)])
        try:
            return self.answer(document, None if length is None else plain[int(length) :])
        except (KeyError, ValueError, TypeError) as error:
            return JSONResponse({"error": repr(error)}, 400)

    def answer(self, document: dict[str, Any], binary: bytes | None) -> Response:
        tensor = document["inputs"][0]
        dtype = DTYPES[tensor["datatype"]]
        flat = np.frombuffer(binary, dtype) if binary else np.array(tensor["data"], dtype)
        images = flat.reshape(tensor["shape"])
        self.tensors.append(images)
        logits = logits_of(images) * (-1 if self.wrong else 1)
        output: dict[str, Any] = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape)}
        found = {"model_name": "tiny", "id": document.get("id", ""), "outputs": [output]}
        asked = (document.get("outputs") or [{}])[0].get("parameters", {})
        headers = {"content-type": "application/json", **self.more_headers}
        if asked.get("binary_data") or document.get("parameters", {}).get("binary_data_output"):
            output["parameters"] = {"binary_data_size": logits.nbytes}
            text = json.dumps(found).encode()
            headers |= {"inference-header-content-length": str(len(text)), "content-type": "application/octet-stream"}
            body = text + logits.tobytes()
        else:
            output["data"] = logits.ravel().tolist()
            body = json.dumps(found).encode()
        if self.packed:
            headers["content-encoding"] = "gzip"
            body = gzip.compress(body)
        return Response(body, headers=headers)


def logits_of(images: NDArray[Any]) -> NDArray[np.float32]:
    matrix, bias = tiny_bundle.weights()
    return (images.reshape(len(images), -1).astype(np.float32) @ matrix + bias).astype(np.float32)


@asynccontextmanager
async def listening(upstream: FakeRestUpstream, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The URL of the fake, which listens within the block; leaving it cuts every connection."""
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:  # with the number, or asyncio lets answers wait
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        config = uvicorn.Config(
            upstream.application(), lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=0
        )
        config.load()
        config.ssl = tls
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for connection in list(server.server_state.connections):
                connection.transport.abort()  # type: ignore[union-attr]
            await server.shutdown(sockets=[listener])
