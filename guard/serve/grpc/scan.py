"""A bound on the parts of a ModelInferRequest, found in its bytes before anything is built from them.

How it works. Two bytes make an empty sub-message, so a message of a few megabytes can hold millions of parts, each of
which costs a parser a hundred bytes and Python a microsecond. The scan walks the fields one after the other (a tag,
then a varint, a fixed width or a length), steps over texts and tensors whole, goes into those parts that have parts
themselves, counts, and stops at the first count that no honest request has. It builds nothing and judges nothing else:
bytes that are no message are left for protobuf to refuse.

Example: `32 00 32 00 32 00 ...` are empty `outputs` (field 6, length-delimited, length 0). The scan stops at the 257th.

Rule 1: its work is bounded by `MAX_FIELDS`, whatever the message's size.
Rule 2: what it lets pass has at most that many parts to every protobuf parser; where it cannot read on, none can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from guard.errors import MalformedRequest

MAX_FIELDS = 16_384  # of the whole message; a tensor's elements count only where they travel one by one, unpacked
MAX_TEXT_BYTES = 64 * 1024  # of a name, a version, an id, a key
MOST = {  # parts of a kind in the whole message
    "inputs": 64,
    "outputs": 256,
    "parameters": 512,
    "raw_input_contents": 64,
    "contents": 1024,
    "names": 1024,
    "shape fields": 1024,
    "unknown fields": 64,
}
VARINT, FIXED64, LENGTH, GROUP, GROUP_END, FIXED32 = range(6)
MAX_VARINT_BYTES = 10
MAX_LENGTH_BYTES = 5  # of a tag and of a length: some parsers take longer ones, some do not


@dataclass(frozen=True)
class Part:
    """A field of a message: its kind's name in `MOST`, and the fields that it has itself."""

    kind: str | None = None  # None: bounded by MAX_FIELDS alone
    fields: Mapping[int, Part] | None = None
    is_text: bool = False


NAME = Part("names", is_text=True)
VALUE = Part(None, {1: Part(), 2: Part(), 3: Part(), 4: Part(), 5: Part()})
PARAMETERS = Part("parameters", {1: NAME, 2: VALUE})
CONTENTS = Part("contents", {number: Part() for number in range(1, 9)})
TENSOR = Part("inputs", {1: NAME, 2: NAME, 3: Part("shape fields"), 4: PARAMETERS, 5: CONTENTS})
OUTPUT = Part("outputs", {1: NAME, 2: PARAMETERS})
RAW = Part("raw_input_contents")
REQUEST: Mapping[int, Part] = {
    1: NAME,
    2: NAME,
    3: NAME,
    4: PARAMETERS,
    5: TENSOR,
    6: OUTPUT,
    7: RAW,
}
UNKNOWN = Part("unknown fields")


@dataclass(frozen=True)
class Span:
    """The place of a raw tensor: its field from `field` to `end`, its bytes from `start` to `end`."""

    field: int
    start: int
    end: int


def scan(request: bytes) -> list[Span] | None:
    """Count the parts of a serialized ModelInferRequest.

    Returns the places of its raw_input_contents; None where it is no protobuf message.

    Raises:
        MalformedRequest: it has more parts than any request has use for.
    """
    counts = dict.fromkeys(MOST, 0)
    fields = 0
    raw: list[Span] = []
    open_parts: list[tuple[int, int, Mapping[int, Part]]] = [(0, len(request), REQUEST)]  # start, end, what is in it
    while open_parts:
        at, end, table = open_parts.pop()
        while at < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise MalformedRequest(
                    f"the request has more than {MAX_FIELDS} fields; send tensors raw, or their elements packed"
                )
            field, tag = at, request[at]
            if tag < 0x80:
                at += 1
            else:
                tag, at = varint(request, at, end, MAX_LENGTH_BYTES)
            wire_type = tag & 7
            part = table.get(tag >> 3, UNKNOWN)
            if wire_type == LENGTH:
                size, at = varint(request, at, end, MAX_LENGTH_BYTES)
                if part.is_text and size > MAX_TEXT_BYTES:
                    raise MalformedRequest(f"the request has a name of {size} bytes; wanted at most {MAX_TEXT_BYTES}")
                if at + size > end:
                    return None
                if part.fields:
                    open_parts.append((at, at + size, part.fields))
                elif part is RAW:
                    raw.append(Span(field, at, at + size))
                at += size
            elif wire_type == VARINT:
                _, at = varint(request, at, end)
            elif wire_type == FIXED32:
                at += 4
            elif wire_type == FIXED64:
                at += 8
            elif wire_type in (GROUP, GROUP_END):
                raise MalformedRequest("the request holds a group, which the Open Inference Protocol does not define")
            else:
                return None
            if part.kind:
                count(part.kind, counts)
        if at > end:
            return None
    return raw


def count(kind: str, counts: dict[str, int]) -> None:
    counts[kind] += 1
    if counts[kind] > MOST[kind]:
        raise MalformedRequest(f"the request has more than {MOST[kind]} {kind}; no model has use for so many")


def varint(request: bytes, at: int, end: int, most_bytes: int = MAX_VARINT_BYTES) -> tuple[int, int]:
    """Read a varint and return its value and the place behind it; one beyond `end` where none is that short."""
    value = 0
    for index in range(most_bytes):
        if at + index >= end:
            break
        byte = request[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    return 0, end + 1


def names_of(request: bytes) -> tuple[str, str, str] | None:
    """The model, version and id that a request names, whatever else is in it; None where that cannot be told.

    They are read as protobuf reads them: of a field that stands twice the last counts, and one of another wire type is
    unknown. Nothing is gone into, so a request of too many parts can still be told by its model.
    """
    found = dict.fromkeys((1, 2, 3), "")
    at, end, fields = 0, len(request), 0
    while at < end:
        fields += 1
        tag, at = varint(request, at, end, MAX_LENGTH_BYTES)
        wire_type, number = tag & 7, tag >> 3
        if fields > MAX_FIELDS or at > end or not number or wire_type not in (VARINT, FIXED64, LENGTH, FIXED32):
            return None
        if wire_type == LENGTH:
            size, at = varint(request, at, end, MAX_LENGTH_BYTES)
            if at + size > end or (number in found and size > MAX_TEXT_BYTES):
                return None
            if number in found:
                try:
                    found[number] = request[at : at + size].decode()
                except UnicodeDecodeError:
                    return None
            at += size
        elif wire_type == VARINT:
            _, at = varint(request, at, end)
        else:
            at += 4 if wire_type == FIXED32 else 8
    return None if at > end else (found[1], found[2], found[3])


def embedded(message: bytes) -> bytes:
    """Extract the message in field 1 of one that has nothing else.

    Raises:
        MalformedRequest: there is anything else in it, or field 1 twice: protobuf merges two messages, each read by
            itself, and two halves of one message would be none.
    """
    if not message:
        return b""
    tag, at = varint(message, 0, len(message), MAX_LENGTH_BYTES)
    size, at = varint(message, at, len(message), MAX_LENGTH_BYTES)
    if tag != (1 << 3 | LENGTH) or at + size != len(message):
        raise MalformedRequest("the request is no guard.v1.InspectRequest; wanted field 1, a ModelInferRequest, once")
    return message[at:]
