"""Reading of the class that a ModelInferResponse names; the answer itself passes as bytes.

Rule 1: reading never fails, and never guesses: what does not show a class of each item shows none.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from guard.manifest import OutputSpec
from guard.serve.grpc.decode import TYPED_FIELD
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse
from guard.serve.named_class import NamedOutput, class_named, words_of
from guard.serve.tensor import DTYPES


def prediction(response: bytes, spec: OutputSpec, items: int) -> NDArray[np.int64] | None:
    """The class [item] that the model server's answer names; None where the answer does not show it."""
    try:
        message = ModelInferResponse.FromString(response)
    except DecodeError:
        return None
    outputs = [
        NamedOutput(tensor.name, tensor.datatype, partial(output_tensor, message, i), partial(output_words, message, i))
        for i, tensor in enumerate(message.outputs)
    ]
    return class_named(outputs, spec, items)


def output_words(message: ModelInferResponse, index: int) -> list[bytes]:
    """The elements of a BYTES output."""
    if index >= len(message.raw_output_contents):
        return list(message.outputs[index].contents.bytes_contents)
    return words_of(message.raw_output_contents[index])


def output_tensor(message: ModelInferResponse, index: int) -> NDArray[Any] | None:
    """The elements of an output in a row; None where there are not as many as its shape says."""
    tensor = message.outputs[index]
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        return None
    if any(size < 0 for size in tensor.shape):
        return None
    count = math.prod(tensor.shape)
    if index < len(message.raw_output_contents):
        raw = message.raw_output_contents[index]
        return np.frombuffer(raw, dtype) if len(raw) == count * dtype.itemsize else None
    field = TYPED_FIELD.get(tensor.datatype)
    values: NDArray[Any] = np.array(getattr(tensor.contents, field)) if field else np.empty(0)
    return values if values.size == count else None


def predicted(answer: bytes, output: OutputSpec, items: int) -> NDArray[np.int64] | None:
    """The classes that the upstream's answer names; None where it does not show them."""
    with suppress(ValueError, OverflowError):  # whatever the upstream sent, it goes to the client
        return prediction(answer, output, items)
    return None
