"""Counting before parsing: floods of parts are refused in no time, honest requests are not."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import MalformedRequest
from guard.serve.grpc.decode import parse
from guard.serve.grpc.scan import MAX_FIELDS, MAX_TEXT_BYTES, MOST, embedded, names_of, scan
from guard.serve.grpc.wire.guard_pb2 import InspectRequest
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from tests.serve import tiny_bundle
from tests.serve.grpc.test_bypass import field, varint
from tests.serve.guarded import infer_request

MANY = 200_000
PLAIN = infer_request(tiny_bundle.ordinary(3)).SerializeToString()


def inside(*numbers: int, body: bytes) -> bytes:
    """`body` within sub-messages, the outermost number first."""
    for number in reversed(numbers):
        body = field(number, body)
    return body


FLOODS = {
    "outputs": field(6, b"") * MANY,
    "inputs": field(5, b"") * MANY,
    "parameters": field(4, b"") * MANY,
    "raw tensors": field(7, b"") * MANY,
    "names": field(1, b"") * MANY,
    "parameters of an input": inside(5, body=field(4, b"") * MANY),
    "parameters of an output": inside(6, body=field(2, b"") * MANY),
    "values of a parameter": inside(4, 2, body=field(3, b"") * MANY),
    "contents": inside(5, body=field(5, b"") * MANY),
    "texts of a tensor": inside(5, 5, body=field(8, b"") * MANY),
    "numbers one by one": inside(5, 5, body=b"\x35\0\0\0\0" * MANY),
    "axes one by one": inside(5, body=b"\x18\x01" * MANY),
    "unknown fields": field(99, b"") * MANY,
    "unknown numbers": varint(99 << 3) * 1 + b"".join(b"\x01" + varint(99 << 3) for _ in range(MANY)) + b"\x01",
    "unknown fields of a tensor": inside(5, 5, body=field(99, b"") * MANY),
    "inputs that merge nothing": inside(5, body=field(1, b"x")) * MANY,
    "groups": b"\x0b\x0c" * MANY,
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_refused_before_anything_is_built_of_it(name: str) -> None:
    request = PLAIN + FLOODS[name]
    tracemalloc.start()
    try:
        began = time.process_time()
        with pytest.raises(MalformedRequest, match=r"more than|group"):
            parse(request)
        took_s, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert took_s < 0.5  # traced, on whatever machine; a walk over all of it takes many times that


@pytest.mark.parametrize("items", [1, 3, 200])
@pytest.mark.parametrize("form", ["raw", "typed"])
def test_an_honest_request_is_none(items: int, form: str) -> None:
    message = infer_request(tiny_bundle.ordinary(items), form=form, id="x" * 100)
    for index in range(50):
        message.parameters[f"p{index}"].string_param = "y" * 1000
        message.inputs[0].parameters[f"p{index}"].int64_param = index
        message.outputs.add(name=f"o{index}").parameters["classification"].int64_param = 3
    request = message.SerializeToString()
    spans = scan(request)
    assert spans is not None
    assert [request[span.start : span.end] for span in spans] == list(message.raw_input_contents)
    parsed = parse(request)
    assert parsed.message.inputs == message.inputs
    assert parsed.message.outputs == message.outputs


def test_elements_may_travel_one_by_one_as_long_as_they_are_few() -> None:
    elements = b"".join(b"\x35" + np.float32(value).tobytes() for value in range(MAX_FIELDS // 2))
    message = parse(inside(5, 5, body=elements)).message
    assert list(message.inputs[0].contents.fp32_contents) == list(range(MAX_FIELDS // 2))


@pytest.mark.parametrize("kind", sorted(MOST))
def test_the_last_part_that_is_allowed_is_allowed(kind: str) -> None:
    part = {
        "inputs": field(5, b""),
        "outputs": field(6, b""),
        "parameters": field(4, b""),
        "raw_input_contents": field(7, b""),
        "contents": None,
        "names": field(3, b""),
        "shape fields": None,
        "unknown fields": field(15, b""),
    }[kind]
    most = MOST[kind]
    inner = {"contents": field(5, b""), "shape fields": b"\x18\x01"}.get(kind)
    build = (lambda count: field(5, (inner or b"") * count)) if part is None else (lambda count: part * count)
    assert scan(build(most)) is not None
    with pytest.raises(MalformedRequest, match=f"more than {most} {kind}"):
        scan(build(most + 1))


def test_a_name_is_no_library() -> None:
    assert scan(field(1, b"x" * MAX_TEXT_BYTES)) == []
    with pytest.raises(MalformedRequest, match="name of 65537 bytes"):
        scan(field(1, b"x" * (MAX_TEXT_BYTES + 1)))


@pytest.mark.parametrize(
    "broken",
    [
        b"\x3a",
        b"\x3a\x05ab",
        b"\x3a\x80",
        b"\x80" * 11,
        b"\x0f",
        b"\x0e",
        b"\x0d\0\0",
        b"\x09\0",
        b"\x2a\x03\x0a\x05a",
        b"\xba\x80\x80\x80\x80\x80\x00\x00",  # a tag of seven bytes: some parsers read it, some do not
        b"\x3a\x80\x80\x80\x80\x80\x00",  # a length of six
    ],
)
def test_what_cannot_be_read_is_no_request(broken: bytes) -> None:
    assert scan(PLAIN + broken) is None
    with pytest.raises(MalformedRequest, match="cannot be parsed"):
        parse(PLAIN + broken)


def test_the_message_in_an_inspection() -> None:
    message = infer_request(tiny_bundle.ordinary(2))
    wrapped = InspectRequest(request=message).SerializeToString()
    assert embedded(wrapped) == message.SerializeToString()
    assert embedded(b"") == b""
    halves = field(1, b"\x0a") + field(1, b"\x04tiny")  # a model's name together, and each alone no message
    for wrong in (b"\x08\x01", b"\x12\x00", b"\x0a\x05", wrapped + b"\x10\x01", halves, wrapped * 2):
        with pytest.raises(MalformedRequest, match="InspectRequest"):
            embedded(wrong)


def test_names_are_read_whatever_else_a_request_holds() -> None:
    request = ModelInferRequest(model_name="m", model_version="2", id="7")
    for _ in range(100):
        request.inputs.add(name="x")
    assert names_of(request.SerializeToString()) == ("m", "2", "7")
    assert names_of(b"") == ("", "", "")
    twice = b"\x0a\x01a" + b"\x0a\x01b"
    assert names_of(twice) == (ModelInferRequest.FromString(twice).model_name, "", "") == ("b", "", "")
    number = b"\x0a\x01a" + b"\x08\x05"  # field 1 as a number is an unknown field
    assert names_of(number) == (ModelInferRequest.FromString(number).model_name, "", "") == ("a", "", "")
    for odd in (b"\x0a\x05a", b"\x0a\x01\xff", b"\x0b\x0c", b"\x00\x01", b"\x0f", b"\x32\x00" * 17_000, b"\x0a"):
        assert names_of(odd) is None


@given(st.binary(max_size=60))
def test_names_are_those_that_protobuf_reads(noise: bytes) -> None:
    for request in (noise, ModelInferRequest(model_name="m", id="i").SerializeToString() + noise):
        names = names_of(request)
        try:
            read = ModelInferRequest.FromString(request)
        except DecodeError:
            continue
        assert names is None or names == (read.model_name, read.model_version, read.id)
