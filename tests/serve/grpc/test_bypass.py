"""Ways around a guard, each closed or answered as documented: a malicious client, real sockets.

The table follows the bypass checklist of the serving reference; after each attempt the upstream has seen nothing.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import guarding, infer_request

ORDINARY, BRIGHT = tiny_bundle.ordinary(1), tiny_bundle.bright(1)
MALFORMED, UNINSPECTABLE = "MALFORMED_REQUEST", "UNINSPECTABLE"
STATUS = {MALFORMED: grpc.StatusCode.INVALID_ARGUMENT, UNINSPECTABLE: grpc.StatusCode.FAILED_PRECONDITION}

Craft = Callable[[], ModelInferRequest | bytes]


def both_raw_and_typed() -> ModelInferRequest:
    """The guard is shown a calm typed tensor, the model the raw one."""
    message = infer_request(BRIGHT)
    message.inputs[0].contents.fp32_contents.extend(ORDINARY.ravel().tolist())
    return message


def shared_memory(prefix: str = "shared_memory_region") -> ModelInferRequest:
    message = infer_request(ORDINARY)
    message.ClearField("raw_input_contents")
    message.inputs[0].parameters[prefix].string_param = "region"
    return message


def shared_memory_beside_bytes() -> ModelInferRequest:
    message = infer_request(ORDINARY)
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return message


def retyped(datatype: str, images: Any) -> ModelInferRequest:
    message = ModelInferRequest(model_name="tiny")
    message.inputs.add(name="input", datatype=datatype, shape=images.shape)
    message.raw_input_contents.append(images.tobytes())
    return message


def encoded_picture() -> ModelInferRequest:
    message = ModelInferRequest(model_name="tiny")
    message.inputs.add(name="input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"\x89PNG")
    return message


def reshaped(*shape: int) -> ModelInferRequest:
    message = infer_request(ORDINARY)
    message.inputs[0].shape[:] = shape
    return message


def raw_entries(*entries: bytes) -> ModelInferRequest:
    message = infer_request(ORDINARY)
    message.raw_input_contents[:] = entries
    return message


def with_value(value: float, form: str) -> ModelInferRequest:
    images = ORDINARY.copy()
    images[0, 0, 2, 1] = value
    return infer_request(images, form=form)


def named(name: str) -> ModelInferRequest:
    message = infer_request(ORDINARY)
    message.inputs[0].name = name
    return message


def second_input(name: str) -> ModelInferRequest:
    message = infer_request(ORDINARY)
    message.inputs.add(name=name, datatype="FP32", shape=BRIGHT.shape)
    message.raw_input_contents.append(BRIGHT.tobytes())
    return message


def no_input() -> ModelInferRequest:
    return ModelInferRequest(model_name="tiny")


def wrong_field() -> ModelInferRequest:
    message = ModelInferRequest(model_name="tiny")
    message.inputs.add(name="input", datatype="FP32", shape=ORDINARY.shape).contents.fp64_contents.extend(
        ORDINARY.ravel().tolist()
    )
    return message


def two_fields() -> ModelInferRequest:
    message = infer_request(ORDINARY, form="typed")
    message.inputs[0].contents.fp64_contents.extend(BRIGHT.ravel().tolist())
    return message


def short_typed() -> ModelInferRequest:
    message = infer_request(ORDINARY, form="typed")
    message.inputs[0].contents.fp32_contents.pop()
    return message


def content_type(where: str) -> ModelInferRequest:
    message = infer_request(ORDINARY)
    parameters = message.parameters if where == "request" else message.inputs[0].parameters
    parameters["content_type"].string_param = "base64"
    return message


def field(number: int, body: bytes) -> bytes:
    """A length-delimited protobuf field, by hand."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def unknown_field_of_the_request() -> bytes:
    return infer_request(ORDINARY).SerializeToString() + field(99, b"raw tensors of a later protocol")


def unknown_field_of_the_tensor() -> bytes:
    tensor = infer_request(ORDINARY).inputs[0].SerializeToString() + field(77, b"?")
    return field(1, b"tiny") + field(5, tensor) + field(7, ORDINARY.tobytes())


def unknown_field_of_the_contents() -> bytes:
    contents = infer_request(ORDINARY, form="typed").inputs[0].contents.SerializeToString() + field(55, b"\x00\x00")
    tensor = ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=ORDINARY.shape).SerializeToString()
    return field(1, b"tiny") + field(5, tensor + field(5, contents))


def wrong_wire_type() -> bytes:
    """raw_input_contents as a number: one parser drops it, another may not."""
    return infer_request(ORDINARY).SerializeToString() + varint(7 << 3) + varint(5)


def doubled_raw() -> bytes:
    """A repeated field continued at the end: two raw entries for one input."""
    return infer_request(ORDINARY).SerializeToString() + field(7, BRIGHT.tobytes())


def doubled_input() -> bytes:
    return infer_request(ORDINARY).SerializeToString() + field(
        5, infer_request(BRIGHT, form="typed").inputs[0].SerializeToString()
    )


ATTEMPTS: dict[str, tuple[Craft, str]] = {
    "both raw and typed": (both_raw_and_typed, MALFORMED),
    "shared memory": (shared_memory, UNINSPECTABLE),
    "shared memory, offset only": (lambda: shared_memory("shared_memory_offset"), UNINSPECTABLE),
    "shared memory beside bytes": (shared_memory_beside_bytes, UNINSPECTABLE),
    "encoded picture": (encoded_picture, UNINSPECTABLE),
    "another codec, request": (lambda: content_type("request"), UNINSPECTABLE),
    "another codec, tensor": (lambda: content_type("tensor"), UNINSPECTABLE),
    "FP16": (lambda: retyped("FP16", ORDINARY.astype(np.float16)), MALFORMED),
    "BF16": (lambda: retyped("BF16", ORDINARY.view(np.uint16)[..., 1::2].copy()), MALFORMED),
    "UINT8": (lambda: retyped("UINT8", (ORDINARY * 255).astype(np.uint8)), MALFORMED),
    "FP64": (lambda: retyped("FP64", ORDINARY.astype(np.float64)), MALFORMED),
    "lower case": (lambda: retyped("fp32", ORDINARY), MALFORMED),
    "no datatype": (lambda: retyped("", ORDINARY), MALFORMED),
    "NaN, raw": (lambda: with_value(np.nan, "raw"), MALFORMED),
    "NaN, typed": (lambda: with_value(np.nan, "typed"), MALFORMED),
    "infinity": (lambda: with_value(-np.inf, "raw"), MALFORMED),
    "another shape, same size": (lambda: reshaped(1, 1, 2, 8), MALFORMED),
    "flat": (lambda: reshaped(1, 16), MALFORMED),
    "no item axis": (lambda: reshaped(1, 4, 4), MALFORMED),
    "more items than bytes": (lambda: reshaped(2, 1, 4, 4), MALFORMED),
    "zero items": (lambda: reshaped(0, 1, 4, 4), MALFORMED),
    "negative": (lambda: reshaped(-1, 1, 4, 4), MALFORMED),
    "both negative": (lambda: reshaped(-1, -1, 4, 4), MALFORMED),
    "enormous": (lambda: reshaped(2**62, 1, 4, 4), MALFORMED),
    "empty shape": (lambda: reshaped(), MALFORMED),
    "no raw entry": (lambda: raw_entries(), MALFORMED),
    "two raw entries": (lambda: raw_entries(ORDINARY.tobytes(), BRIGHT.tobytes()), MALFORMED),
    "short raw": (lambda: raw_entries(ORDINARY.tobytes()[:-1]), MALFORMED),
    "long raw": (lambda: raw_entries(ORDINARY.tobytes() + b"\0"), MALFORMED),
    "short typed": (short_typed, MALFORMED),
    "wrong typed field": (wrong_field, MALFORMED),
    "two typed fields": (two_fields, MALFORMED),
    "unknown input": (lambda: named("image"), MALFORMED),
    "unnamed input": (lambda: named(""), MALFORMED),
    "no input": (no_input, MALFORMED),
    "the input twice": (lambda: second_input("input"), MALFORMED),
    "a second input": (lambda: second_input("mask"), MALFORMED),
    "more items than can ever be inspected": (lambda: infer_request(tiny_bundle.ordinary(600)), MALFORMED),
    "unknown field of the request": (unknown_field_of_the_request, MALFORMED),
    "unknown field of the tensor": (unknown_field_of_the_tensor, MALFORMED),
    "unknown field of the contents": (unknown_field_of_the_contents, MALFORMED),
    "wrong wire type": (wrong_wire_type, MALFORMED),
    "doubled raw": (doubled_raw, MALFORMED),
    "doubled input": (doubled_input, MALFORMED),
    "no protobuf": (lambda: b"\xff\xff\xff", MALFORMED),
    "cut off": (lambda: infer_request(ORDINARY).SerializeToString()[:-3], MALFORMED),
    "nothing": (lambda: b"", "UNKNOWN_MODEL"),
}


@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_a_request_that_two_parsers_could_read_differently_is_refused(bundle: Path, on_failure: str) -> None:
    """Failing open is for the guard's own failures; what the client chooses is refused all the same."""

    async def story() -> None:
        async with guarding(bundle, on_failure=on_failure) as guarded:
            for name, (craft, reason) in ATTEMPTS.items():
                answer = await guarded.client.call("ModelInfer", craft())
                assert (name, answer.code) == (name, STATUS.get(reason, grpc.StatusCode.NOT_FOUND))
                assert (name, answer.reason) == (name, reason)
                assert guarded.upstream.requests == [], name
            assert await guarded.metric("guard_requests_total", action="refused") == len(ATTEMPTS)
            assert await guarded.metric("guard_unchecked_total") == 0
            assert (await guarded.client.infer(ORDINARY)).ok

    asyncio.run(story())


def test_what_looks_odd_but_reads_one_way_passes_as_it_came(bundle: Path) -> None:
    """Doubled scalars (the last wins everywhere) and fields out of order read one way: the bytes go up untouched."""

    async def story() -> None:
        async with guarding(bundle) as guarded:
            plain = infer_request(ORDINARY)
            tensor = plain.inputs[0].SerializeToString()
            odd = [
                field(1, b"other") + plain.SerializeToString(),
                field(7, ORDINARY.tobytes()) + field(5, tensor) + field(1, b"tiny"),
                plain.SerializeToString() + field(3, b"a") + field(3, b"b"),
            ]
            for request in odd:
                assert (await guarded.client.call("ModelInfer", request)).ok
            assert guarded.upstream.requests == odd
            last_wins = plain.SerializeToString() + field(1, b"other")
            assert (await guarded.client.call("ModelInfer", last_wins)).code is grpc.StatusCode.NOT_FOUND

    asyncio.run(story())


def test_an_attack_spread_over_doubled_messages_is_seen_whole(bundle: Path) -> None:
    """Concatenated messages merge: the typed contents of both halves are one tensor, to the guard as to the model."""

    async def story() -> None:
        async with guarding(bundle) as guarded:
            values = BRIGHT.ravel().tolist()
            halves = []
            for part in (values[:8], values[8:]):
                tensor = ModelInferRequest.InferInputTensor()
                tensor.contents.fp32_contents.extend(part)
                halves.append(tensor.SerializeToString())
            head = ModelInferRequest.InferInputTensor(
                name="input", datatype="FP32", shape=BRIGHT.shape
            ).SerializeToString()
            answer = await guarded.client.call("ModelInfer", field(1, b"tiny") + field(5, head + halves[0] + halves[1]))
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED
            assert guarded.upstream.requests == []

    asyncio.run(story())


def test_another_name_for_the_same_weights_is_refused(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            for name in ("tiny-ensemble", "TINY", "tiny ", ""):
                answer = await guarded.client.infer(BRIGHT, name=name)
                assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")
            assert guarded.upstream.requests == []

    asyncio.run(story())


METHODS = [
    *(
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "ModelConfig",
        "ModelStatistics",
    ),
    *(
        "SystemSharedMemoryRegister",
        "CudaSharedMemoryRegister",
        "SystemSharedMemoryStatus",
        "TraceSetting",
        "LogSettings",
    ),
    *("modelinfer", "ModelInfer ", "ModelInfer/", "Anything"),
    *(
        "/inference.model_repository.ModelRepositoryService/Load",
        "/other.Service/ModelInfer",
        "/guard.v1.Guard/Inspect",
    ),
]


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
def test_every_method_that_nobody_opened_is_refused(bundle: Path, mode: str) -> None:
    """An RPC is opened by name, not by mode; the admin service is not on this listener."""

    async def story() -> None:
        async with guarding(bundle, mode=mode) as guarded:
            seen = set(guarded.upstream.calls)
            for method in METHODS:
                answer = await guarded.client.call(method, infer_request(BRIGHT))
                assert (method, answer.code) == (method, grpc.StatusCode.UNIMPLEMENTED)
                if not method.startswith("/"):
                    assert answer.reason == "NOT_ALLOWED"
            start: Any = guarded.client.channel.stream_stream("/inference.GRPCInferenceService/TraceSetting")
            call = start(iter([]))  # grpc.aio's client tells INTERNAL where the answer overtakes its message
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(call))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert guarded.upstream.requests == []
            assert set(guarded.upstream.calls) - seen <= {"ServerReady", "ModelReady", "ModelMetadata"}

    asyncio.run(story())


def test_a_gzip_bomb_is_stopped_by_its_unpacked_size(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, max_message_bytes=64 * 1024) as guarded:
            bomb = infer_request(np.zeros((4000, *tiny_bundle.SHAPE), np.float32)).SerializeToString()
            assert len(gzip.compress(bomb)) < 4096 < 64 * 1024 < len(bomb)
            answer = await guarded.client.call("ModelInfer", bomb, compression=grpc.Compression.Gzip)
            assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert guarded.upstream.requests == []
            assert (await guarded.client.infer(ORDINARY, compression=grpc.Compression.Gzip)).ok

    asyncio.run(story())


def test_metadata_cannot_speak_for_the_guard(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            forged = (("guard-verdict", "pass"), ("guard-id", "x"), ("guard-mode", "off"))
            answer = await guarded.client.infer(BRIGHT, metadata=forged)
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED
            assert guarded.upstream.requests == []

    asyncio.run(story())


def test_values_outside_the_box_are_inspected_as_they_are(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            answer = await guarded.client.infer(ORDINARY + np.float32(1e6))
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED

    asyncio.run(story())


def test_a_request_judged_as_a_whole_cannot_hide_in_a_crowd(bundle: Path) -> None:
    """With few calibration blocks of its size no p-value could reach the threshold: it is refused, not passed."""

    async def story() -> None:
        async with guarding(bundle, rows="request", on_failure="open") as guarded:
            crowd = tiny_bundle.ordinary(200)
            crowd[100:101] = BRIGHT
            answer = await guarded.client.infer(crowd)
            assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, UNINSPECTABLE)
            assert guarded.upstream.requests == []

    asyncio.run(story())


def test_shadow_refuses_nothing_and_marks_what_it_could_not_see(bundle: Path) -> None:
    async def story() -> None:
        fake = FakeUpstream(fail=(grpc.StatusCode.INVALID_ARGUMENT, "the upstream's own words", ()))
        async with guarding(bundle, fake, mode="shadow") as guarded:
            answer = await guarded.client.call("ModelInfer", both_raw_and_typed())
            assert answer.details == "the upstream's own words"
            assert answer.trailing["guard-verdict"] == "unchecked"
            assert await guarded.metric("guard_unchecked_total", reason="malformed_request") == 1
            assert guarded.events("unchecked")[0]["reason"] == "malformed_request"

    asyncio.run(story())
