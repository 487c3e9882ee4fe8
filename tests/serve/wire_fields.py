"""Protobuf on the wire by hand: fields as a list that can be moved about, and valid ModelInfer requests made of it.

Field(1, LENGTH, b"tiny")           0a 04 74 69 6e 79
Field(1, LENGTH, b"tiny", spare=1)  8a 00 84 00 74 69 6e 79: the same, in longer numbers
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from guard.manifest import InputSpec

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)  # wire types
MODEL_NAME, VERSION, ID, PARAMETERS, INPUTS, OUTPUTS, RAW = range(1, 8)  # fields of ModelInferRequest
NAME, DATATYPE, SHAPE, TENSOR_PARAMETERS, CONTENTS = range(1, 6)  # of its InferInputTensor
TYPED = {"FP32": 6, "UINT8": 4}  # the field of InferTensorContents that has the elements
WIDE = 2**64 - 1
SPECS = (  # what requests are for
    InputSpec("input", "FP32", (2, 3), (0.0,), (1.0,), None),
    InputSpec("input", "UINT8", (2, 3), (0.0,), (255.0,), 255),
    InputSpec("input", "FP32", (3, 2, 2), (0.0,), (1.0,), None, "NHWC"),
    InputSpec("input", "UINT8", (5,), (0.0,), (255.0,), 255),
)


@dataclass
class Field:
    """One field as it stands on the wire."""

    number: int
    kind: int  # wire type
    value: Any  # int, bytes, or a list of fields
    spare: int = 0  # bytes by which its numbers are longer than they need to be
    key_bits: int = 0  # added to its key: bits that a parser has no room for
    size_bits: int = 0  # added to its length or number, likewise
    times: int = 1  # how often it stands there in a row


Fields = list[Field]


def varint(value: int, spare: int = 0) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    if not spare:
        return bytes([*out, value])
    return bytes([*out, value | 0x80, *[0x80] * (spare - 1), 0])


def encoded(fields: Fields) -> bytes:
    return b"".join(encoded_field(field) * field.times for field in fields)


def encoded_field(field: Field) -> bytes:
    """The bytes of one field; a value that mutations have left under another wire type is made to fit."""
    key = varint((field.number << 3 | field.kind) + field.key_bits, field.spare)
    body = encoded(field.value) if isinstance(field.value, list) else field.value
    if field.kind == VARINT:
        number = body if isinstance(body, int) else len(body)
        return key + varint((number & WIDE) + field.size_bits, field.spare)
    body = b"" if isinstance(body, int) else body
    if field.kind == LENGTH:
        return key + varint(len(body) + field.size_bits, field.spare) + body
    if field.kind == GROUP:
        return key + body + varint(field.number << 3 | END_GROUP)
    if field.kind == END_GROUP:
        return key
    size = 4 if field.kind == FIXED32 else 8
    return key + bytes(body[:size]).ljust(size, b"\0")


def single(field: Field, size: int | None) -> Fields:
    """The elements of a packed run, each a field of its own; `size` in bytes, None: varints."""
    if size:
        kind = FIXED32 if size == 4 else FIXED64
        return [Field(field.number, kind, field.value[at : at + size]) for at in range(0, len(field.value), size)]
    out, value, shift = [], 0, 0
    for byte in field.value:
        value, shift = value | (byte & 0x7F) << shift, shift + 7
        if not byte & 0x80:
            out.append(Field(field.number, VARINT, value))
            value = shift = 0
    return out


def valid(spec: InputSpec, rng: Random) -> Fields:
    """A request that every server reads alike: raw or typed, with some of what clients add."""
    shape = (rng.choice([1, 1, 2, 3]), *spec.wire_shape)
    values = elements(spec, math.prod(shape), rng)
    tensor = [
        Field(NAME, LENGTH, spec.name.encode()),
        Field(DATATYPE, LENGTH, spec.datatype.encode()),
        Field(SHAPE, LENGTH, b"".join(map(varint, shape))),
    ]
    fields = [Field(MODEL_NAME, LENGTH, b"tiny"), Field(INPUTS, LENGTH, tensor)]
    if spec.datatype in TYPED and rng.random() < 0.5:
        tensor.append(Field(CONTENTS, LENGTH, [typed(spec, values)]))
    else:
        fields.append(Field(RAW, LENGTH, np.array(values, spec.dtype).tobytes()))
    if rng.random() < 0.3:
        fields.append(Field(ID, LENGTH, b"request-7"))
    if rng.random() < 0.3:
        fields.append(Field(OUTPUTS, LENGTH, [Field(1, LENGTH, b"logits")]))
    if rng.random() < 0.3:
        fields.append(parameter(PARAMETERS, b"priority", Field(5, VARINT, 3)))
    return fields


def elements(spec: InputSpec, count: int, rng: Random) -> list[Any]:
    if spec.dtype.kind == "f":
        return [rng.choice([0.0, 0.25, 1.0, rng.random(), -rng.random() * 1e3]) for _ in range(count)]
    return [rng.randint(0, 255) for _ in range(count)]


def typed(spec: InputSpec, values: list[Any]) -> Field:
    """The field of InferTensorContents that holds these elements, packed."""
    run = struct.pack(f"<{len(values)}f", *values) if spec.dtype.kind == "f" else b"".join(map(varint, values))
    return Field(field_of(spec), LENGTH, run)


def field_of(spec: InputSpec) -> int:
    """The typed field that a client would take; FP16 has none, and FP32's is refused for it."""
    return TYPED.get(spec.datatype, TYPED["FP32"])


def parameter(number: int, key: bytes, value: Field) -> Field:
    """An entry of a map<string, InferParameter>."""
    return Field(number, LENGTH, [Field(1, LENGTH, key), Field(2, LENGTH, [value])])
