"""The remote procedures of the Open Inference Protocol and of its servers, each with a request that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_health.v1 import health_pb2

from guard.bundle import Bundle
from guard.errors import DataError
from guard.serve.grpc.decode import encode
from guard.serve.grpc.health import HEALTH
from guard.serve.grpc.method_groups import REPOSITORY_INDEX
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from guard.serve.tensor import DTYPES

MESSAGE_ID = "guard-conformance"
NO_SUCH_MODEL = "guard-conformance-no-such-model"
GARBAGE = b"\xff\xff\xff\xffno message of this protocol"
MAX_REQUEST_BYTES = 16 * 2**20  # of a request that is made up for a model
NO_MODEL = "no model is named; give --model NAME"
CHANGES = "it changes the model server"


@dataclass(frozen=True)
class Procedure:
    """A remote procedure, with what may be sent to a server in production."""

    method: str  # its full name
    request: bytes = b""
    faulty: Mapping[str, bytes] = field(default_factory=dict)  # requests that a server refuses, by their fault
    response: Any = None  # the class of its answer, where this program knows it
    answered_by_guard: bool = False
    withheld: str | None = None  # why its request is never sent to the model server

    @property
    def name(self) -> str:
        service, _, name = self.method.strip("/").rpartition("/")
        return f"{service.rpartition('.')[2]}.{name}" if path(name) != self.method else name


def procedures(infer: ModelInferRequest | None, *, unnamed: str = NO_MODEL) -> Iterator[Procedure]:
    """Yield all procedures, for the model that `infer` names; where it is None, those of a model are withheld."""
    withheld = unnamed if infer is None else None
    message = infer if infer is not None else ModelInferRequest()
    body = message.SerializeToString(deterministic=True)
    named = {"name": message.model_name, "version": message.model_version}
    of_model = ModelMetadataRequest(**named).SerializeToString()  # ModelConfig and ModelStatistics have the same fields
    unknown = {"unknown model": ModelMetadataRequest(name=NO_SUCH_MODEL).SerializeToString()}
    faulty = {
        "unknown model": changed(message, model_name=NO_SUCH_MODEL),
        "no inputs": changed(message, inputs=(), raw_input_contents=()),
        "no message of the protocol": GARBAGE,
    }
    yield Procedure(path("ServerLive"), response=ServerLiveResponse, answered_by_guard=True)
    yield Procedure(path("ServerReady"), response=ServerReadyResponse, answered_by_guard=True)
    yield Procedure(path("ServerMetadata"), response=ServerMetadataResponse)
    ready = ModelReadyRequest(**named).SerializeToString()
    yield Procedure(path("ModelReady"), ready, unknown, ModelReadyResponse, withheld=withheld)
    yield Procedure(path("ModelMetadata"), of_model, unknown, ModelMetadataResponse, withheld=withheld)
    yield Procedure(path("ModelInfer"), body, faulty, ModelInferResponse, withheld=withheld)
    yield Procedure(path("ModelStreamInfer"), body, withheld=withheld)
    yield Procedure(path("ModelConfig"), of_model, unknown, withheld=withheld)
    yield Procedure(path("ModelStatistics"), of_model, unknown, withheld=withheld)
    yield Procedure(path("RepositoryIndex"))
    yield Procedure(REPOSITORY_INDEX)
    for kind in ("System", "Cuda"):
        yield Procedure(path(f"{kind}SharedMemoryStatus"))
        yield Procedure(path(f"{kind}SharedMemoryRegister"), withheld=CHANGES)
        yield Procedure(path(f"{kind}SharedMemoryUnregister"), withheld=CHANGES)
    for name in ("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"):
        yield Procedure(path(name), withheld=CHANGES)
    health = health_pb2.HealthCheckRequest().SerializeToString()
    yield Procedure(f"/{HEALTH}/Check", health, answered_by_guard=True)
    yield Procedure(path("NoSuchMethod"))


def changed(message: ModelInferRequest, **fields: Any) -> bytes:
    """Serialize a copy of a request in which some fields have other values, or none."""
    copy = ModelInferRequest()
    copy.CopyFrom(message)
    for name, value in fields.items():
        copy.ClearField(name)
        if value:
            setattr(copy, name, value)
    body: bytes = copy.SerializeToString(deterministic=True)
    return body


def bundled_request(bundle: Bundle) -> ModelInferRequest:
    """A request of the most ordinary of a bundle's own samples."""
    model, samples = bundle.manifest.model, bundle.samples
    images = samples.images[int(samples.p_values.argmax())][None]
    message = ModelInferRequest(model_name=model.name, model_version=model.version, id=MESSAGE_ID)
    message.inputs.add(name=model.input.name, datatype=model.input.datatype, shape=images.shape)
    return ModelInferRequest.FromString(encode(message, images, model.input, "raw"))


def request_of_zeros(metadata: bytes, name: str, version: str) -> ModelInferRequest:
    """A request of zeros for a model, one item of each input that its metadata tells of.

    Raises:
        DataError: the metadata do not tell what a request has to look like.
    """
    cure = "give --request FILE, a ModelInferRequest"
    try:
        inputs = ModelMetadataResponse.FromString(metadata).inputs
    except DecodeError as error:
        raise DataError(f"the server's metadata of model {name!r} cannot be read; {cure}") from error
    if not inputs:
        raise DataError(f"the server tells of no inputs of model {name!r}; {cure}")
    message = ModelInferRequest(model_name=name, model_version=version, id=MESSAGE_ID)
    for tensor in inputs:
        shape = [max(1, size) for size in tensor.shape]
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        message.raw_input_contents.append(zeros(tensor.datatype, shape, cure))
    return message


def zeros(datatype: str, shape: Sequence[int], cure: str) -> bytes:
    """The raw bytes of a tensor of zeros, or of empty texts. Raises DataError."""
    item_bytes = 4 if datatype == "BYTES" else 2 if datatype == "BF16" else 0
    if not item_bytes:
        if datatype not in DTYPES:
            raise DataError(f"a model's input has datatype {datatype!r}, which no request can be made up for; {cure}")
        item_bytes = np.dtype(DTYPES[datatype]).itemsize
    if (size_bytes := math.prod(shape) * item_bytes) > MAX_REQUEST_BYTES:
        raise DataError(f"a model's input of shape {list(shape)} is too large to be made up; {cure}")
    return bytes(size_bytes)


def listed_models(index: bytes) -> list[tuple[str, str]]:
    """The (name, version) of each model in a RepositoryIndexResponse: models = 1, of name = 1 and version = 2."""
    found = []
    entries = UnknownFieldSet(ServerLiveRequest.FromString(index))
    for entry in (entries[place] for place in range(len(entries))):
        if entry.field_number == 1 and isinstance(entry.data, bytes):
            model = ModelReadyRequest.FromString(entry.data)  # name and version have the same places there
            found.append((model.name, model.version))
    return found
