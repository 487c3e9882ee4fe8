"""Decoding of V2 REST requests into the array that the model will see, and encoding where a repair changes it.

    JSON alone        {"inputs": [{"name": …, "shape": …, "datatype": …, "data": [numbers, flat or nested]}]}
    with a binary     the same with parameters {"binary_data_size": bytes} for `data`, as many bytes of the body as the
    tensor            header Inference-Header-Content-Length says, and behind them the tensor's own

Rule 1: what two parsers could read differently is refused, so that the guard and the model see the same tensor: keys
        that stand twice or are not the protocol's, a tensor in both forms, bytes that nothing speaks of.
Rule 2: what the bytes do not show (shared memory, encoded pictures) is uninspectable, and never passed as if inspected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import MalformedRequest
from guard.manifest import InputSpec
from guard.serve.rest.strict_json import Numbers, read_json
from guard.serve.tensor import (
    Decoded,
    check_content_type,
    check_names,
    check_not_elsewhere,
    check_not_encoded,
    check_shape,
    check_values,
    raw_array,
)

JSON_LENGTH = "inference-header-content-length"
BINARY_SIZE = "binary_data_size"
REQUEST_KEYS = frozenset({"id", "model_name", "model_version", "parameters", "inputs", "outputs"})
TENSOR_KEYS = frozenset({"name", "shape", "datatype", "parameters", "data"})
LENGTH = re.compile(r"[0-9]{1,12}", re.ASCII)


@dataclass(frozen=True)
class RestRequest:
    """A request's JSON, and the bytes of its binary tensors."""

    body: bytes  # plain
    text: str
    document: dict[str, Any]
    binary: memoryview
    numbers: Sequence[Numbers]  # all that the JSON has

    @property
    def id(self) -> str:
        found = self.document.get("id")
        return found if isinstance(found, str) else ""

    @property
    def parameters(self) -> Mapping[str, Any]:
        found = self.document.get("parameters")
        return found if isinstance(found, dict) else {}


def json_length(values: Sequence[str]) -> int | None:
    """The length of the JSON that the headers name; None where there is no such header. Raises MalformedRequest."""
    if not values:
        return None
    if len(values) > 1 or LENGTH.fullmatch(values[0]) is None:
        raise MalformedRequest(
            f"Inference-Header-Content-Length is {', '.join(values)[:40]!r}; wanted one number of bytes"
        )
    return int(values[0])


def parse(body: bytes, length: int | None) -> RestRequest:
    """Parse a plain body, of which `length` bytes are JSON (None: all). Raises MalformedRequest."""
    if length is not None and length > len(body):
        raise MalformedRequest(
            f"Inference-Header-Content-Length is {length}, and the body has {len(body)} bytes, unpacked"
        )
    view = memoryview(body)
    try:
        text = str(view[:length], "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedRequest("the request's JSON is not in UTF-8") from error
    document, numbers = read_json(text)
    if not isinstance(document, dict):
        raise MalformedRequest("the request is no JSON object with the key 'inputs'")
    return RestRequest(body, text, document, view[len(body) if length is None else length :], numbers)


def check_model(request: RestRequest, name: str, version: str) -> None:
    """Raise MalformedRequest where the request's JSON names another model than its path."""
    for key, named in (("model_name", name), ("model_version", version)):
        found = request.document.get(key)
        if found not in (None, "", named):
            raise MalformedRequest(f"the request's {key} is {str(found)[:40]!r}, and its path names {named!r}")


def decode(request: RestRequest, spec: InputSpec, *, max_items: int | None = None) -> Decoded:
    """Decode and check the one input tensor of a request.

    Raises:
        MalformedRequest: it contradicts itself, the protocol or the model's input, or has more than `max_items`.
        Uninspectable: the tensor's bytes are not in the request, or stand for something else.
    """
    document = request.document
    check_keys(document, REQUEST_KEYS, "the request")
    if not isinstance(document.get("id"), str | None):
        raise MalformedRequest("the request's id is no text")
    check_content_type(parameters(document, "the request").get("content_type"), "the request")
    listed(document.get("outputs"), "outputs")
    tensors = listed(document.get("inputs"), "inputs")
    check_names([str(tensor.get("name")) for tensor in tensors], spec)
    if any(numbers is not tensors[0].get("data") for numbers in request.numbers):
        raise MalformedRequest("the request has a list of numbers under a key 'data' that is no input's")
    return decode_tensor(tensors[0], request.binary, spec, max_items=max_items)


def decode_tensor(tensor: Mapping[str, Any], binary: memoryview, spec: InputSpec, *, max_items: int | None) -> Decoded:
    """Decode the one input. Raises as `decode`."""
    where = f"input {spec.name!r}"
    check_keys(tensor, TENSOR_KEYS, where)
    given = parameters(tensor, where)
    check_not_elsewhere(list(given), spec.name)
    check_content_type(given.get("content_type"), where)
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str):
        raise MalformedRequest(f"{where} names no datatype; the model takes {spec.datatype}")
    check_not_encoded(datatype, spec.name)
    shape = check_shape(datatype, axes_of(tensor, where), spec, max_items=max_items)
    data, size = tensor.get("data"), given.get(BINARY_SIZE)
    if data is not None and size is not None:
        raise MalformedRequest(
            f"{where} has both data and {BINARY_SIZE}; servers disagree on which counts, so send one"
        )
    if size is None and len(binary):
        raise MalformedRequest(f"{len(binary)} bytes follow the JSON, and no input names them by {BINARY_SIZE}")
    if size is not None:
        if type(size) is not int or size != len(binary):
            raise MalformedRequest(
                f"{where} has {BINARY_SIZE} {str(size)[:20]}, and {len(binary)} bytes follow the JSON; how many bytes "
                "the JSON itself has is told by the header Inference-Header-Content-Length"
            )
        images = raw_array(binary, shape, spec)
    elif isinstance(data, Numbers):
        images = converted(data.values(shape), spec)
    else:
        raise MalformedRequest(f"{where} has no data, or data that is no list of numbers")
    check_values(images, spec)
    return Decoded(images, "typed" if size is None else "raw")


def check_keys(found: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    """Raise MalformedRequest for a key that we do not know: it may mean something to the model server."""
    unknown = sorted(found.keys() - known)
    if unknown:
        raise MalformedRequest(
            f"{where} has the key {unknown[0][:40]!r}, which the Open Inference Protocol does not define there; "
            f"it may have {', '.join(sorted(known))}"
        )


def parameters(found: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    given = found.get("parameters")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise MalformedRequest(f"the parameters of {where} are no JSON object")
    return given


def listed(found: Any, key: str) -> list[Mapping[str, Any]]:
    """The objects of a list; none where there is none."""
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise MalformedRequest(f"the request's {key} are no list of JSON objects")
    return found


def axes_of(tensor: Mapping[str, Any], where: str) -> list[int]:
    axes = tensor.get("shape")
    if not isinstance(axes, list) or not all(type(size) is int for size in axes):
        raise MalformedRequest(f"{where} has no shape, or one that is no list of whole numbers")
    return axes


def converted(values: NDArray[np.float64], spec: InputSpec) -> NDArray[Any]:
    """The numbers of JSON in the model's datatype, as every server converts them. Raises MalformedRequest."""
    if spec.dtype.kind == "f":
        with np.errstate(over="ignore"):  # to infinity, which is refused
            return values.astype(spec.dtype)
    wrong = (values != np.floor(values)) | (values < 0) | (values > np.iinfo(spec.dtype).max)
    if wrong.any():
        raise MalformedRequest(f"input {spec.name!r} holds {values[wrong][0]:g}, which is no {spec.datatype}")
    return values.astype(spec.dtype)


def encode(request: RestRequest, images: NDArray[Any], form: str) -> bytes:
    """The plain body with another input tensor, in the form in which it came; all else stays as it was."""
    if form == "raw":
        return request.body[: len(request.body) - len(request.binary)] + np.ascontiguousarray(images).tobytes()
    data = request.document["inputs"][0]["data"]
    numbers = json.dumps((images.ravel() if data.is_flat else images).tolist())
    return f"{request.text[: data.start]}{numbers}{request.text[data.end :]}".encode()
