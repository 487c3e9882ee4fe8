"""Reading of the class that a V2 REST answer names; the answer itself passes as bytes.

Rule 1: reading never fails, and never guesses: what does not show a class of each item shows none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import MalformedRequest
from guard.manifest import OutputSpec
from guard.serve.named_class import NamedOutput, class_named, words_of
from guard.serve.rest.decode import BINARY_SIZE, JSON_LENGTH, RestRequest, json_length, listed, parameters, parse
from guard.serve.rest.headers import Headers, values
from guard.serve.rest.packing import coding_of, unpacked
from guard.serve.rest.strict_json import Numbers
from guard.serve.tensor import DTYPES


@dataclass(frozen=True)
class RestAnswer:
    """An answer of the model server as it came, its headers being those for the client."""

    status: int
    headers: Headers
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


def prediction(answer: RestAnswer, spec: OutputSpec, items: int, *, largest_bytes: int) -> NDArray[np.int64] | None:
    """The class [item] that the model server's answer names; None where the answer does not show it."""
    with suppress(MalformedRequest, ValueError, OverflowError):
        plain = unpacked(answer.body, coding_of(values(answer.headers, "content-encoding")), largest_bytes)
        return class_named(outputs_of(parse(plain, json_length(values(answer.headers, JSON_LENGTH)))), spec, items)
    return None


def outputs_of(answer: RestRequest) -> list[NamedOutput]:
    """The outputs of an answer, which has the form of a request; their binary tensors lie in their order."""
    found, start = [], 0
    for tensor in listed(answer.document.get("outputs"), "outputs"):
        size = parameters(tensor, "an output").get(BINARY_SIZE)
        raw = None
        if type(size) is int and size >= 0:
            raw, start = answer.binary[start : start + size], start + size
        name, datatype = str(tensor.get("name")), str(tensor.get("datatype"))
        found.append(
            NamedOutput(
                name, datatype, partial(output_values, tensor, datatype, raw), partial(output_words, tensor, raw)
            )
        )
    return found


def output_values(tensor: Mapping[str, Any], datatype: str, raw: memoryview | None) -> NDArray[Any] | None:
    """The elements of an output in a row; None where there are not as many as its shape says."""
    dtype, shape = DTYPES.get(datatype), tensor.get("shape")
    if dtype is None or not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        return None
    if raw is not None:
        return np.frombuffer(raw, dtype) if len(raw) == math.prod(shape) * dtype.itemsize else None
    data = tensor.get("data")
    return data.values(shape).ravel().astype(dtype) if isinstance(data, Numbers) else None


def output_words(tensor: Mapping[str, Any], raw: memoryview | None) -> list[bytes]:
    """The elements of a BYTES output."""
    if raw is not None:
        return words_of(raw)
    data = tensor.get("data")
    return [word.encode() for word in data if isinstance(word, str)] if isinstance(data, list) else []
