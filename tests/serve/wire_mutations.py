"""ModelInfer messages as bytes that no library would write: valid ones, changed field by field, then byte by byte.

Each mutation is a function of what it changes in place and a `random.Random`; hypothesis draws one as well. Those of
the fields come first, so that a mutation can move, double, split or mistype any part; those of the bytes come last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from guard.manifest import InputSpec
from tests.serve.wire_fields import (
    CONTENTS,
    DATATYPE,
    END_GROUP,
    FIXED32,
    FIXED64,
    GROUP,
    INPUTS,
    LENGTH,
    NAME,
    OUTPUTS,
    PARAMETERS,
    RAW,
    SHAPE,
    TENSOR_PARAMETERS,
    TYPED,
    VARINT,
    Field,
    Fields,
    encoded,
    encoded_field,
    field_of,
    parameter,
    single,
    typed,
    valid,
    varint,
)

Mutation = Callable[[Fields, InputSpec, Random], None]

ODD_NUMBERS = (0, 1, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
ODD_FLOATS = (math.nan, math.inf, -math.inf, -0.0, 1e-45, 3.4e38)
HIGH_BITS = (2**31, 2**32, 2**35, 2**36, 2**63, 2**64, 2**69, 2**70)  # no room in 32 or 64 bits, or ten bytes
SIZES = {TYPED["FP32"]: 4, TYPED["UINT8"]: None}  # of an element of a typed field in bytes; None: a varint
THOUSANDS = (1_000, 5_000, 30_000)
DEPTHS = (2, 10, 99, 100, 101, 200)
MAX_DEPTH = 2_000  # of groups, which cost a byte or two a level


# where a mutation works


def lists(fields: Fields) -> list[Fields]:
    """The message and every message in it."""
    found = [fields]
    for field in fields:
        if isinstance(field.value, list):
            found += lists(field.value)
    return found


def tensors(fields: Fields) -> list[Fields]:
    return [f.value for f in fields if f.number == INPUTS and isinstance(f.value, list)]


def contents(fields: Fields) -> list[Fields]:
    return [f.value for tensor in tensors(fields) for f in tensor if f.number == CONTENTS and isinstance(f.value, list)]


def somewhere(fields: Fields, rng: Random) -> tuple[Fields, int]:
    """A message in the tree and a place in it, its end included."""
    chosen = rng.choice(lists(fields))
    return chosen, rng.randint(0, len(chosen))


def insert(fields: Fields, rng: Random, *new: Field) -> None:
    chosen, at = somewhere(fields, rng)
    chosen[at:at] = new


# mutations of the tree


def reorder(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """Fields in another order, of the message or of one in it."""
    rng.shuffle(rng.choice(lists(fields)))


def double_scalar(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """A text or number twice, the same or another: the last counts."""
    chosen = rng.choice(lists(fields))
    scalars = [f for f in chosen if f.kind == VARINT or (f.kind == LENGTH and isinstance(f.value, bytes))]
    if scalars:
        old = rng.choice(scalars)
        other = old.value if rng.random() < 0.4 else rng.choice([b"other", b"", b"FP32", b"\xff"])
        chosen.insert(rng.randint(0, len(chosen)), Field(old.number, old.kind, other if old.kind == LENGTH else 7))


def unknown_field(fields: Fields, spec: InputSpec, rng: Random) -> None:
    number = rng.choice([0, 8, 9, 15, 16, 99, 2**29 - 1, 2**29, 2**32])
    kind = rng.choice([VARINT, FIXED64, LENGTH, FIXED32])
    insert(fields, rng, Field(number, kind, 5 if kind == VARINT else b"unknown!"))


def wrong_wire_type(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """A known number in another wire type."""
    chosen = rng.choice(lists(fields))
    if not chosen:
        return
    number, kind = rng.choice(chosen).number, rng.choice([VARINT, FIXED64, LENGTH, FIXED32, GROUP, 6, 7])
    value: Any = {VARINT: 1, GROUP: [], LENGTH: b"\1\1"}.get(kind, b"\1\0\0\0")
    if rng.random() < 0.5:
        chosen.append(Field(number, kind, value))
    else:
        chosen[rng.randrange(len(chosen))] = Field(number, kind, value)


def unpack(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """A typed run or a shape as one field an element: older clients write it so."""
    chosen = rng.choice([*contents(fields), *tensors(fields), []])
    for at, field in enumerate(list(chosen)):
        if not (field.kind == LENGTH and isinstance(field.value, bytes)):
            continue
        if chosen in contents(fields) and field.number in TYPED.values():
            chosen[at : at + 1] = single(field, SIZES[field.number])
        elif field.number == SHAPE and chosen not in contents(fields):
            chosen[at : at + 1] = single(field, None)
        else:
            continue
        return


def split_run(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """A packed run in two, mostly between elements: the halves are one tensor."""
    for chosen in contents(fields):
        for at, field in enumerate(list(chosen)):
            if isinstance(field.value, bytes) and field.number in TYPED.values():
                size = SIZES[field.number] or 1
                cut = rng.randint(0, len(field.value) // size) * size + rng.choice([0, 0, 0, 0, 1])
                halves = field.value[:cut], field.value[cut:]
                chosen[at : at + 1] = [Field(field.number, LENGTH, half) for half in halves]
                return


def split_message(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """A sub-message in two that merge, where the field is single: contents, or a parameter's value."""
    for chosen in rng.sample(lists(fields), len(lists(fields))):
        for at, field in enumerate(list(chosen)):
            if isinstance(field.value, list) and (field.number == CONTENTS or field.number == 2):
                cut = rng.randint(0, len(field.value))
                halves = field.value[:cut], field.value[cut:]
                chosen[at : at + 1] = [Field(field.number, LENGTH, half) for half in halves]
                return


def long_numbers(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """Numbers in more bytes than they need, up to the ten that a varint may have; shapes and elements too."""
    chosen = rng.choice(lists(fields))
    for field in chosen:
        if rng.random() < 0.5:
            field.spare = rng.choice([1, 1, 2, 3])
    for tensor in tensors(fields):
        for field in tensor:
            if field.number == SHAPE and isinstance(field.value, bytes) and rng.random() < 0.3:
                sizes = [single_field.value for single_field in single(field, None)]
                field.value = b"".join(varint(size, rng.choice([0, 1, 8])) for size in sizes)


def over_long_numbers(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """Numbers of more bytes than a varint may have."""
    chosen = rng.choice(lists(fields))
    if chosen:
        rng.choice(chosen).spare = rng.choice([4, 8, 9, 10, 11, 20])


def high_bits(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """A key, a length or a number with bits that a parser drops or refuses."""
    chosen = rng.choice(lists(fields))
    if chosen:
        field = rng.choice(chosen)
        if rng.random() < 0.5:
            field.key_bits = rng.choice(HIGH_BITS) * rng.choice([1, 1, 8])
        else:
            field.size_bits = rng.choice(HIGH_BITS)


def empty_messages(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """Empty sub-messages by the thousand, of a kind that counts or of one that does not."""
    number = rng.choice([OUTPUTS, OUTPUTS, INPUTS, PARAMETERS, RAW, 4, 5])
    where = fields if rng.random() < 0.7 else rng.choice(lists(fields))
    at = rng.randint(0, len(where))
    where.insert(at, Field(number, LENGTH, b"", times=rng.choice([1, 2, *THOUSANDS])))


def group(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """A group of proto2, whole or only one end of it."""
    number = rng.choice([RAW, INPUTS, 5, 99])
    inside = [Field(1, VARINT, 1)]
    insert(fields, rng, rng.choice([Field(number, GROUP, inside), Field(number, END_GROUP, b""), Field(number, 3, [])]))


def deep_nesting(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """Groups or sub-messages in each other, deeper than some parsers go."""
    number, kind = rng.choice([5, 99]), rng.choice([GROUP, LENGTH])
    depth = rng.choice([*DEPTHS, MAX_DEPTH] if kind == GROUP else DEPTHS)
    if kind == GROUP:
        body = varint(number << 3 | GROUP) * depth + varint(number << 3 | END_GROUP) * depth
        insert(fields, rng, Field(number, GROUP, body))
        return
    body = b""
    for _ in range(depth):
        body = encoded_field(Field(number, LENGTH, body))
    insert(fields, rng, Field(number, LENGTH, body))


def odd_value(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """One element that is no number, or that the datatype cannot hold."""
    runs = [f for f in fields if f.number == RAW]
    runs += [f for part in contents(fields) for f in part if f.number == field_of(spec)]
    runs = [f for f in runs if f.kind == LENGTH and isinstance(f.value, bytes) and f.value]
    if not runs:
        return
    field = rng.choice(runs)
    if spec.dtype.kind == "f":
        with np.errstate(all="ignore"):  # 1e39 is no float32
            odd, size = np.array(rng.choice(ODD_FLOATS), spec.dtype).tobytes(), spec.dtype.itemsize
    else:
        odd, size = varint(rng.choice(ODD_NUMBERS)), 1
    at = rng.randrange(len(field.value)) // size * size
    field.value = field.value[:at] + odd + field.value[at + size :]


def lying_shape(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """A shape of other sizes, signs, or numbers of axes."""
    for tensor in tensors(fields):
        for field in tensor:
            if field.number == SHAPE and isinstance(field.value, bytes):
                sizes = [part.value for part in single(field, None)] or [1]
                change = rng.randrange(5)
                if change == 0:
                    sizes[rng.randrange(len(sizes))] = rng.choice([*ODD_NUMBERS, 2, 3])
                elif change == 1:
                    sizes.insert(rng.randint(0, len(sizes)), 1)
                elif change == 2:
                    del sizes[rng.randrange(len(sizes))]
                elif change == 3:
                    rng.shuffle(sizes)
                else:
                    sizes[0], sizes[-1] = sizes[0] * 2, sizes[-1]
                field.value = b"".join(map(varint, sizes))


def both_forms(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """Raw beside typed, typed beside raw, or a second raw entry."""
    size = math.prod((1, *spec.wire_shape))
    if rng.random() < 0.5 or not tensors(fields):
        fields.append(Field(RAW, LENGTH, rng.choice([b"", bytes(size * spec.dtype.itemsize)])))
    else:
        rng.choice(tensors(fields)).append(Field(CONTENTS, LENGTH, rng.choice([[], [typed(spec, [1] * size)]])))


def other_field(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """A typed field that is not the datatype's, empty or not."""
    for part in contents(fields):
        part.insert(rng.randint(0, len(part)), Field(rng.randint(1, 8), LENGTH, rng.choice([b"", b"", b"\1" * 8])))


def other_name(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """Another input name or datatype, or one in bytes that are no text."""
    for tensor in tensors(fields):
        for field in tensor:
            if field.number in (NAME, DATATYPE) and rng.random() < 0.5:
                field.value = rng.choice(
                    [b"", b"Input", b"input\0", b"FP16", b"BYTES", b"fp32", b"\xff\xfe", b"\xed\xa0\x80"]
                )


def odd_parameter(fields: Fields, spec: InputSpec, rng: Random) -> None:
    """Parameters that change what the bytes mean, or that only look as if."""
    key = rng.choice([b"shared_memory_region", b"content_type", b"binary_data_size", b"classification", b"", b"\xff"])
    value = rng.choice([Field(3, LENGTH, b"np"), Field(3, LENGTH, b"base64"), Field(2, VARINT, 5), Field(1, VARINT, 2)])
    if rng.random() < 0.5 or not tensors(fields):
        fields.append(parameter(PARAMETERS, key, value))
    else:
        rng.choice(tensors(fields)).append(parameter(TENSOR_PARAMETERS, key, value))


TREE: dict[str, Mutation] = {
    "reorder": reorder,
    "double scalar": double_scalar,
    "unknown field": unknown_field,
    "wrong wire type": wrong_wire_type,
    "unpack": unpack,
    "split run": split_run,
    "split message": split_message,
    "long numbers": long_numbers,
    "over-long numbers": over_long_numbers,
    "high bits": high_bits,
    "empty messages": empty_messages,
    "group": group,
    "deep nesting": deep_nesting,
    "odd value": odd_value,
    "lying shape": lying_shape,
    "both forms": both_forms,
    "other field": other_field,
    "other name": other_name,
    "odd parameter": odd_parameter,
}


# mutations of the bytes


def change_bytes(wire: bytearray, rng: Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 5])):
        if wire:
            wire[rng.randrange(len(wire))] = rng.randrange(256)


def flip_bit(wire: bytearray, rng: Random) -> None:
    if wire:
        wire[rng.randrange(len(wire))] ^= 1 << rng.randrange(8)


def truncate(wire: bytearray, rng: Random) -> None:
    del wire[rng.randint(0, len(wire)) :]


def cut_out(wire: bytearray, rng: Random) -> None:
    at = rng.randint(0, len(wire))
    del wire[at : at + rng.choice([1, 1, 2, 8])]


def put_in(wire: bytearray, rng: Random) -> None:
    at = rng.randint(0, len(wire))
    wire[at:at] = rng.randbytes(rng.choice([1, 1, 2, 8]))


BYTES: dict[str, Callable[[bytearray, Random], None]] = {
    "change bytes": change_bytes,
    "flip bit": flip_bit,
    "truncate": truncate,
    "cut out": cut_out,
    "put in": put_in,
}
CONCATENATE = "concatenate"
HEADS = (b"", b"\x0a\5other", b"\x1a\1x")  # what a second message may consist of


def concatenate(wire: bytearray, spec: InputSpec, rng: Random) -> None:
    """Another message at the end, whole or a part: two messages in a row are one that merges them."""
    other = encoded(valid(spec, rng)) if rng.random() < 0.4 else rng.choice(HEADS)
    wire += other[: rng.choice([len(other), len(other), rng.randint(0, len(other))])]


NAMES = (*TREE, *BYTES, CONCATENATE)
COUNTS, COUNT_WEIGHTS = range(5), (4, 40, 30, 16, 10)  # mutations of one message


def mutated(spec: InputSpec, names: list[str], rng: Random) -> bytes:
    """A valid message, changed by these mutations."""
    fields = valid(spec, rng)
    for name in names:
        if name in TREE:
            TREE[name](fields, spec, rng)
    wire = bytearray(encoded(fields))
    for name in names:
        if name in BYTES:
            BYTES[name](wire, rng)
        elif name == CONCATENATE:
            concatenate(wire, spec, rng)
    return bytes(wire)


def chosen(rng: Random) -> list[str]:
    """Which mutations a message gets."""
    return rng.choices(NAMES, k=rng.choices(COUNTS, COUNT_WEIGHTS)[0])
