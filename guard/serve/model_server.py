"""A small Open Inference Protocol server over ONNX Runtime: the reference upstream of tests and demo.

It answers raw requests raw and typed ones typed, as MLServer does, and runs each request by itself. It guards nothing.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from guard.errors import MalformedRequest, ModelError, UnknownModel, first_line
from guard.serve.event_loop import EventLoop
from guard.serve.grpc.call import Call
from guard.serve.grpc.connection_limits import ConnectionLimits
from guard.serve.grpc.decode import TYPED_FIELD
from guard.serve.grpc.door import Door
from guard.serve.grpc.health import HEALTH, Health
from guard.serve.grpc.listener import Handler, Methods, listening
from guard.serve.grpc.reflection import reflecting
from guard.serve.grpc.scan import scan
from guard.serve.grpc.upstream import SERVICE, path
from guard.serve.grpc.wire.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from guard.serve.line_writer import STANDARD_ERROR_CODE, line_writer
from guard.serve.log import Log
from guard.serve.permits import Permits
from guard.serve.readiness import Readiness
from guard.serve.tensor import DTYPES
from guard.session import onnxruntime, session_options

ONNX_TYPES = {  # ONNX Runtime's name -> the protocol's
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(float16)": "FP16",
    "tensor(uint8)": "UINT8",
    "tensor(int8)": "INT8",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
}
MAX_MESSAGE_BYTES = 128 * 2**20
MAX_BYTES_IN_FLIGHT = 8 * MAX_MESSAGE_BYTES
MAX_CONNECTIONS = 1024
MAX_CONNECTION_CALLS = 1024  # under way on one connection
READ_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Tensor:
    """An input or output as the model declares it; a size of -1 stands for any."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ServedModel:
    """A model from an ONNX file, loaded."""

    def __init__(self, file: Path, *, name: str | None, version: str, threads: int | None) -> None:
        """Load the file for `threads` threads; None: the CPUs that this process may use. Raises ModelError."""
        ort = onnxruntime()
        options = session_options(ort, threads=threads, spinning=False)
        if not file.is_file():
            raise ModelError(f"{file} does not exist; wanted an .onnx file")
        try:
            self.session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own untyped family
            raise ModelError(f"{file} cannot be loaded by ONNX Runtime: {first_line(error)}") from error
        self.name = file.stem if name is None else name
        self.version = version
        self.inputs = [declared(node, file) for node in self.session.get_inputs()]
        self.outputs = [declared(node, file) for node in self.session.get_outputs()]

    def run(self, request: ModelInferRequest) -> ModelInferResponse:
        """Run the model on one request. Raises MalformedRequest."""
        wanted = [output.name for output in request.outputs] or [output.name for output in self.outputs]
        if unknown := set(wanted) - {output.name for output in self.outputs}:
            raise MalformedRequest(f"model {self.name!r} has no output {', '.join(sorted(unknown))}")
        feed = self.feed(request)
        try:
            arrays = self.session.run(wanted, feed)
        except Exception as error:  # onnxruntime raises its own untyped family
            raise MalformedRequest(f"model {self.name!r} cannot run on this input: {first_line(error)}") from error
        response = ModelInferResponse(model_name=self.name, model_version=self.version, id=request.id)
        datatypes = {output.name: output.datatype for output in self.outputs}
        for name, array in zip(wanted, arrays, strict=True):
            tensor = response.outputs.add(name=name, datatype=datatypes[name], shape=array.shape)
            values = [str(word).encode() for word in array.ravel()] if tensor.datatype == "BYTES" else None
            if request.raw_input_contents or datatypes[name] not in TYPED_FIELD:
                response.raw_output_contents.append(
                    np.ascontiguousarray(array).tobytes() if values is None else behind_lengths(values)
                )
            else:
                getattr(tensor.contents, TYPED_FIELD[datatypes[name]]).extend(values or array.ravel().tolist())
        return response

    def feed(self, request: ModelInferRequest) -> dict[str, NDArray[Any]]:
        raw = list(request.raw_input_contents)
        if raw and len(raw) != len(request.inputs):
            raise MalformedRequest(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs")
        datatypes = {tensor.name: tensor.datatype for tensor in self.inputs}
        feed: dict[str, NDArray[Any]] = {}
        for index, tensor in enumerate(request.inputs):
            if datatypes.get(tensor.name) != tensor.datatype:
                raise MalformedRequest(
                    f"model {self.name!r} takes {datatypes}, not {tensor.name!r} as {tensor.datatype!r}"
                )
            dtype = DTYPES[tensor.datatype]
            if raw:
                flat = np.frombuffer(raw[index], dtype=np.uint8)
                flat = flat.view(dtype) if flat.size % dtype.itemsize == 0 else flat[:0]
            else:
                flat = np.array(getattr(tensor.contents, TYPED_FIELD[tensor.datatype])).astype(dtype)
            try:
                feed[tensor.name] = flat.reshape(tuple(tensor.shape))
            except ValueError as error:
                raise MalformedRequest(
                    f"input {tensor.name!r} has {flat.size} elements for shape {list(tensor.shape)}"
                ) from error
        return feed

    def metadata(self) -> ModelMetadataResponse:
        kind = ModelMetadataResponse.TensorMetadata
        return ModelMetadataResponse(
            name=self.name,
            versions=[self.version] if self.version else [],
            platform="onnxruntime_onnx",
            inputs=[kind(name=t.name, datatype=t.datatype, shape=t.shape) for t in self.inputs],
            outputs=[kind(name=t.name, datatype=t.datatype, shape=t.shape) for t in self.outputs],
        )


def behind_lengths(words: Sequence[bytes]) -> bytes:
    """Return texts as the protocol has them raw: each behind its length in four bytes."""
    return b"".join(len(word).to_bytes(4, "little") + word for word in words)


def declared(node: Any, file: Path) -> Tensor:
    if node.type not in ONNX_TYPES:
        raise ModelError(f"{file}: {node.name} is {node.type}; this server speaks {', '.join(ONNX_TYPES.values())}")
    return Tensor(node.name, ONNX_TYPES[node.type], tuple(size if isinstance(size, int) else -1 for size in node.shape))


class ModelService:
    """The six methods of the protocol for one model."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def check(self, name: str, version: str) -> None:
        if name != self.model.name or (version and version != self.model.version):
            raise UnknownModel(
                f"this server has {self.model.name!r} version {self.model.version!r}, not {name!r} version {version!r}"
            )

    async def server_live(self, request: ServerLiveRequest) -> ServerLiveResponse:  # noqa: ARG002
        return ServerLiveResponse(live=True)

    async def server_ready(self, request: ServerReadyRequest) -> ServerReadyResponse:  # noqa: ARG002
        return ServerReadyResponse(ready=True)

    async def server_metadata(self, request: ServerMetadataRequest) -> ServerMetadataResponse:  # noqa: ARG002
        return ServerMetadataResponse(name="guard model-server", version="1")

    async def model_ready(self, request: ModelReadyRequest) -> ModelReadyResponse:
        self.check(request.name, request.version)
        return ModelReadyResponse(ready=True)

    async def model_metadata(self, request: ModelMetadataRequest) -> ModelMetadataResponse:
        self.check(request.name, request.version)
        return self.model.metadata()

    async def model_infer(self, request: ModelInferRequest) -> ModelInferResponse:
        self.check(request.model_name, request.model_version)
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.model.run, request)

    def methods(self, door: Door) -> Methods:
        table: Sequence[tuple[str, Callable[[Any], Awaitable[Any]], Any]] = (
            ("ServerLive", self.server_live, ServerLiveRequest),
            ("ServerReady", self.server_ready, ServerReadyRequest),
            ("ServerMetadata", self.server_metadata, ServerMetadataRequest),
            ("ModelReady", self.model_ready, ModelReadyRequest),
            ("ModelMetadata", self.model_metadata, ModelMetadataRequest),
            ("ModelInfer", self.model_infer, ModelInferRequest),
        )
        return {path(name): door.unary(partial(answered, work, request)) for name, work, request in table}


async def answered(
    work: Callable[[Any], Awaitable[Any]],
    request_type: Any,
    body: bytes,
    call: Call,  # noqa: ARG001
) -> bytes:
    """Parse a request, work on it, and serialize the answer. Raises MalformedRequest, and what `work` raises."""
    if request_type is ModelInferRequest:
        scan(body)
    try:
        request = request_type.FromString(body)
    except DecodeError as error:
        raise MalformedRequest(f"the request is no {request_type.DESCRIPTOR.full_name}") from error
    answer: bytes = (await work(request)).SerializeToString()
    return answer


async def unknown(requests: Any, context: Any) -> None:  # noqa: ARG001
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server has no such method")


@asynccontextmanager
async def serving(model: ServedModel, listen: str, *, log: Log | None = None) -> AsyncIterator[str]:
    """Run the model server within the block; yields its address, with the port that was bound. Raises PortError."""
    service, readiness = ModelService(model), Readiness()
    readiness.reasons.clear()
    health = Health(readiness)
    door = Door(
        Permits(MAX_BYTES_IN_FLIGHT, largest_bytes=MAX_MESSAGE_BYTES),
        largest_bytes=MAX_MESSAGE_BYTES,
        read_timeout_s=READ_TIMEOUT_S,
        log=log or Log(),
    )
    methods = {
        **service.methods(door),
        **health.methods(door),
        **reflecting([SERVICE, HEALTH], door),
    }
    other: Handler = grpc.stream_stream_rpc_method_handler(unknown)
    async with listening(
        listen,
        methods,
        other,
        max_message_bytes=MAX_MESSAGE_BYTES,
        limits=ConnectionLimits(MAX_CONNECTIONS, MAX_CONNECTION_CALLS),
    ) as listener:
        listener.changed = partial(readiness.say, "listener")
        try:
            yield listener.address
        finally:
            health.close()
            await door.empty(1.0)
            await listener.stop()
            service.thread.shutdown(wait=False, cancel_futures=True)
            door.close()


def serve_model(
    file: Path, *, listen: str, name: str | None = None, version: str = "", threads: int | None = None
) -> None:
    """Serve `file` until SIGTERM or SIGINT; `name` defaults to the file's.

    Raises:
        ModelError: the file is no model that ONNX Runtime can run.
        PortError: `listen` is taken.
    """
    model = ServedModel(file, name=name, version=version, threads=threads)
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(serve_until_signal(model, listen))


async def serve_until_signal(model: ServedModel, listen: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with line_writer(STANDARD_ERROR_CODE) as stream:
        log = Log(stream=stream)
        async with serving(model, listen, log=log) as address:
            log.info("listening", inference=address, model=model.name)
            await stop.wait()
        log.info("stopped")
