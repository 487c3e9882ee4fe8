"""Reading of the class that a model server's answer names, in numbers or in words; the answer itself passes as bytes.

Rule 1: reading never fails, and never guesses: what does not show a class of each item shows none.

MLServer's scikit-learn runtime answers with `predict`, labels [item] or [item, 1], unless a client asks for
`predict_proba`, float64 [item, class]; whichever of the two a bundle names, both are read.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from guard.manifest import OutputSpec
from guard.serve.grpc.decode import DTYPES, TYPED_FIELD
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse

SCIKIT_LEARN = {"predict": "label", "predict_proba": "probabilities"}  # outputs of MLServer's runtime for it
MAX_FLOAT_LABEL_CODE = 2**53  # the largest class that a float tells from its neighbours; NaN names none
LENGTH_BYTES = 4  # before each text of a raw BYTES tensor


def prediction(response: bytes, spec: OutputSpec, items: int) -> NDArray[np.int64] | None:
    """The class [item] that the model server's answer names; None where the answer does not show it."""
    try:
        message = ModelInferResponse.FromString(response)
    except DecodeError:
        return None
    for index, tensor in enumerate(message.outputs):
        if tensor.name == spec.name and not (tensor.datatype == "BYTES" and spec.labels):
            values = output_tensor(message, index)
            return None if values is None else named_class(values, spec, items)
    found = worded_class(message, spec, items) if spec.labels else None
    return scikit_learn_class(message, spec, items) if found is None else found


def scikit_learn_class(message: ModelInferResponse, spec: OutputSpec, items: int) -> NDArray[np.int64] | None:
    """The class [item] that an answer of MLServer's scikit-learn runtime names; None where it has none of its outputs.

    A label that no class has names none: it is of a model whose labels do not run from 0.
    """
    for index, tensor in enumerate(message.outputs):
        kind = SCIKIT_LEARN.get(tensor.name)
        if kind is None or tensor.datatype == "BYTES" or (values := output_tensor(message, index)) is None:
            continue
        found = named_class(values, replace(spec, kind=kind, single=False), items)
        if found is not None and (kind != "label" or bool(((found >= 0) & (found < spec.classes)).all())):
            return found
    return None


def worded_class(message: ModelInferResponse, spec: OutputSpec, items: int) -> NDArray[np.int64] | None:
    """The class [item] that an output of text names; None where none names a class of each item."""
    places = {name.encode(): number for number, name in enumerate(spec.labels)}
    for index, tensor in enumerate(message.outputs):
        words = output_words(message, index) if tensor.datatype == "BYTES" else []
        if len(words) == items and all(word in places for word in words):
            return np.asarray([places[word] for word in words], dtype=np.int64)
    return None


def output_words(message: ModelInferResponse, index: int) -> list[bytes]:
    """The elements of a BYTES output, each behind its length (4 bytes, little-endian) where they travel raw."""
    if index >= len(message.raw_output_contents):
        return list(message.outputs[index].contents.bytes_contents)
    raw, words, start = message.raw_output_contents[index], [], 0
    while start < len(raw):
        end = start + LENGTH_BYTES + int.from_bytes(raw[start : start + LENGTH_BYTES], "little")
        if end > len(raw):
            return []
        words.append(raw[start + LENGTH_BYTES : end])
        start = end
    return words


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


def named_class(values: NDArray[Any], spec: OutputSpec, items: int) -> NDArray[np.int64] | None:
    if spec.kind == "label":
        whole = values.dtype.kind != "f" or bool((np.abs(values) <= MAX_FLOAT_LABEL_CODE).all())
        return in_places(values.astype(np.int64).ravel(), spec) if values.size == items and whole else None
    if values.size != items * spec.columns or np.isnan(values).any():
        return None
    if spec.single:
        threshold = 0.5 if spec.kind == "probabilities" else 0.0
        return (values > threshold).astype(np.int64).ravel()
    return np.asarray(values.reshape(items, spec.classes).argmax(axis=1), dtype=np.int64)


def in_places(labels: NDArray[np.int64], spec: OutputSpec) -> NDArray[np.int64] | None:
    """Labels [item] as places of classes, where the bundle's do not run from 0; None where one is of no class."""
    if not spec.numbers:
        return labels
    places = {number: place for place, number in enumerate(spec.numbers)}
    found = [places.get(label, -1) for label in labels.tolist()]
    return None if -1 in found else np.asarray(found, dtype=np.int64)
