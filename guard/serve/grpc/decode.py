"""Decoding of ModelInfer messages into the array that the model will see, and encoding where a repair changes it.

Rule 1: what two parsers could read differently is refused, so that the guard and the model see the same tensor.
Rule 2: what the bytes do not show (shared memory, encoded pictures) is uninspectable, and never passed as if inspected.

Values outside the model's box are inspected as they are: the detectors see exactly what the model would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from guard.errors import MalformedRequest
from guard.manifest import InputSpec
from guard.serve.grpc.scan import Span, scan
from guard.serve.grpc.wire.inference_pb2 import InferParameter, InferTensorContents, ModelInferRequest
from guard.serve.tensor import Decoded as Decoded
from guard.serve.tensor import (
    Form,
    check_content_type,
    check_names,
    check_not_elsewhere,
    check_not_encoded,
    check_shape,
    check_values,
    raw_array,
)
from guard.serve.tensor import tensor_digest as tensor_digest

TYPED_FIELD = {  # datatype -> the one field of InferTensorContents that carries it
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class Request:
    """A ModelInferRequest whose raw tensors are views of the bytes received: `message` has all but them."""

    message: ModelInferRequest
    raw: tuple[memoryview, ...]


def parse(request: bytes) -> Request:
    """Parse a request. Raises MalformedRequest when the bytes are no ModelInferRequest, or one of too many parts."""
    spans = scan(request)
    try:
        message = ModelInferRequest.FromString(request if spans is None else without(request, spans))
    except DecodeError as error:
        raise MalformedRequest("the request is no inference.ModelInferRequest; its bytes cannot be parsed") from error
    if spans is None:
        raise MalformedRequest("the request is no inference.ModelInferRequest; its bytes cannot be parsed")
    view = memoryview(request)
    return Request(message, tuple(view[span.start : span.end] for span in spans))


def without(request: bytes, spans: Sequence[Span]) -> bytes:
    """Cut fields out of a serialized message."""
    edges = [0, *(edge for span in spans for edge in (span.field, span.end)), len(request)]
    return b"".join(request[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))


def decode(request: Request, spec: InputSpec, *, max_items: int | None = None) -> Decoded:
    """Decode and check the one input tensor of a request.

    Raises:
        MalformedRequest: it contradicts itself, the protocol or the model's input, or has more than `max_items`.
        Uninspectable: the tensor's bytes are not in the request, or stand for something else.
    """
    message = request.message
    check_unknown_fields(message)
    check_parameters(message.parameters, "the request")
    check_names([tensor.name for tensor in message.inputs], spec)
    tensor = message.inputs[0]
    check_not_elsewhere(list(tensor.parameters), tensor.name)
    check_parameters(tensor.parameters, f"input {tensor.name!r}")
    check_not_encoded(tensor.datatype, tensor.name)
    shape = check_shape(tensor.datatype, tensor.shape, spec, max_items=max_items)
    form: Form = "raw" if request.raw else "typed"
    if form == "raw" and tensor.HasField("contents") and tensor.contents.ListFields():
        raise MalformedRequest(
            "the request has both raw_input_contents and contents; servers disagree on which counts, so send one"
        )
    images = raw_tensor(request.raw, shape, spec) if form == "raw" else typed_tensor(tensor.contents, shape, spec)
    check_values(images, spec)
    return Decoded(images, form)


def check_unknown_fields(message: ModelInferRequest) -> None:
    """Raise MalformedRequest for a field that we do not know: it may mean something to the model server."""
    parts: list[Message] = [message, *message.inputs, *message.outputs, *message.parameters.values()]
    for given in message.inputs:
        parts.extend(given.parameters.values())
    for asked in message.outputs:
        parts.extend(asked.parameters.values())
    parts.extend(tensor.contents for tensor in message.inputs if tensor.HasField("contents"))
    for part in parts:
        if len(UnknownFieldSet(part)):
            name = part.DESCRIPTOR.name
            raise MalformedRequest(
                f"the request's {name} carries a field that the Open Inference Protocol does not define"
            )


def check_parameters(parameters: Mapping[str, InferParameter], where: str) -> None:
    """Raise Uninspectable where the model server would decode what is sent."""
    if "content_type" in parameters:
        check_content_type(parameters["content_type"].string_param, where)


def raw_tensor(entries: Sequence[memoryview], shape: tuple[int, ...], spec: InputSpec) -> NDArray[Any]:
    if len(entries) != 1:
        raise MalformedRequest(f"the request has {len(entries)} raw_input_contents for one input; wanted one")
    return raw_array(entries[0], shape, spec)


def typed_tensor(contents: InferTensorContents, shape: tuple[int, ...], spec: InputSpec) -> NDArray[Any]:
    if spec.datatype not in TYPED_FIELD:
        raise MalformedRequest(
            f"input {spec.name!r} is {spec.datatype}, which the protocol has no typed contents for; "
            "send it in raw_input_contents"
        )
    field = TYPED_FIELD[spec.datatype]
    for other, values in contents.ListFields():
        if other.name != field and len(values):
            raise MalformedRequest(
                f"input {spec.name!r} is {spec.datatype} but fills {other.name}; wanted {field} alone"
            )
    values = getattr(contents, field)
    if len(values) != math.prod(shape):
        raise MalformedRequest(
            f"input {spec.name!r} has {len(values)} elements in {field}; shape {list(shape)} takes {math.prod(shape)}"
        )
    if spec.dtype.kind == "u":
        wide = np.array(values, dtype=np.uint64)
        if wide.max() > np.iinfo(spec.dtype).max:
            raise MalformedRequest(f"input {spec.name!r} holds {int(wide.max())}, which is no {spec.datatype}")
        return wide.astype(spec.dtype).reshape(shape)
    return np.array(values, dtype=spec.dtype).reshape(
        shape
    )  # the buffer path; iterating in Python takes 30 times as long


def encode(message: ModelInferRequest, images: NDArray[Any], spec: InputSpec, form: Form) -> bytes:
    """Serialize the request with another input tensor, in the form in which it came; all else stays as it was."""
    changed = ModelInferRequest()
    changed.CopyFrom(message)
    if form == "raw":
        changed.raw_input_contents.append(np.ascontiguousarray(images).tobytes())
    else:
        values = getattr(changed.inputs[0].contents, TYPED_FIELD[spec.datatype])
        values[:] = images.ravel().tolist()
    return changed.SerializeToString()
