"""The REST door in front of a model server that is asked over gRPC: the same tensors, names and errors."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from guard.errors import GuardError, MalformedRequest, UpstreamDown
from guard.serve.grpc.wire.inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from guard.serve.log import Log
from guard.serve.rest.decode import RestRequest, parse
from guard.serve.rest.translation import message_of, reply_of
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import config_for, until
from tests.serve.rest.rest_guarded import INFER, JSON_LENGTH, binary_body, json_body

Story = Callable[[httpx.AsyncClient, FakeUpstream], Awaitable[None]]


@asynccontextmanager
async def guarding(bundle: Path, fake: FakeUpstream, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the REST door of a guard whose model server speaks gRPC alone."""
    async with listening(fake) as address:
        config = config_for(bundle, address, rest_listen="127.0.0.1:0", **settings)
        async with running(config, log=Log("error")) as serving:
            base = f"http://{serving.rest_address}"
            async with httpx.AsyncClient(base_url=base, timeout=20, trust_env=False) as client:
                await until(lambda: serving.readiness.because is None, lambda: str(serving.readiness.because))
                yield client


def told(bundle: Path, story: Story, fake: FakeUpstream | None = None, **settings: Any) -> None:
    async def whole() -> None:
        upstream = fake or FakeUpstream()
        async with guarding(bundle, upstream, **settings) as client:
            await story(client, upstream)

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_clean_passes_crafted_is_refused_and_the_tensor_is_the_same(bundle: Path) -> None:
    async def story(client: httpx.AsyncClient, fake: FakeUpstream) -> None:
        images = tiny_bundle.ordinary(2)
        body = json_body(images, id="seven", parameters={"priority": 3, "fast": True, "tag": "a", "share": 0.5})
        found = await client.post(INFER, content=body, headers={"x-request-id": "abc"})
        assert found.status_code == 200
        (output,) = found.json()["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [2, tiny_bundle.CLASSES])
        assert len(output["data"]) == 2 * tiny_bundle.CLASSES
        sent = ModelInferRequest.FromString(fake.requests[0])
        assert sent.raw_input_contents[0] == images.tobytes()
        assert (sent.model_name, sent.id, sent.inputs[0].name) == ("tiny", "seven", "input")
        assert sent.parameters["priority"] == InferParameter(int64_param=3)
        assert sent.parameters["fast"] == InferParameter(bool_param=True)
        assert sent.parameters["share"] == InferParameter(double_param=0.5)
        assert fake.headers[-1]["x-request-id"] == "abc"

        crafted = await client.post(INFER, content=json_body(tiny_bundle.striped(1)))
        assert (crafted.status_code, crafted.headers["guard-reason"]) == (403, "REJECTED")
        assert len(fake.requests) == 1

    told(bundle, story)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_binary_tensors_go_and_come_as_bytes(bundle: Path, *, packed: bool) -> None:
    async def story(client: httpx.AsyncClient, fake: FakeUpstream) -> None:
        images = tiny_bundle.ordinary(3)
        body, headers = binary_body(images)
        if packed:
            body, headers = gzip.compress(body), {**headers, "content-encoding": "gzip"}
        found = await client.post(INFER, content=body, headers=headers)
        assert found.status_code == 200
        assert ModelInferRequest.FromString(fake.requests[0]).raw_input_contents[0] == images.tobytes()
        length = int(found.headers[JSON_LENGTH])
        (output,) = json.loads(found.content[:length])["outputs"]
        assert output["parameters"]["binary_data_size"] == len(found.content) - length
        as_json = (await client.post(INFER, content=json_body(images))).json()["outputs"][0]["data"]
        assert np.frombuffer(found.content[length:], np.float32).tolist() == as_json

    told(bundle, story)


def test_health_and_metadata_are_the_model_servers(bundle: Path) -> None:
    async def story(client: httpx.AsyncClient, fake: FakeUpstream) -> None:
        assert (await client.get("/v2/health/ready")).status_code == 200
        assert (await client.get("/v2/models/tiny/ready")).json()["ready"] is True
        about = (await client.get("/v2/models/tiny")).json()
        assert about["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, *tiny_bundle.SHAPE]}]
        assert set((await client.get("/v2")).json()) >= {"name", "version", "extensions"}
        assert (await client.get("/v2/models/tiny/stats")).status_code == 404

    told(bundle, story)


def test_what_is_opened_and_has_no_counterpart_is_told(bundle: Path) -> None:
    async def story(client: httpx.AsyncClient, fake: FakeUpstream) -> None:
        found = await client.get("/v2/models/tiny/config")
        assert found.status_code == 501
        assert "over gRPC" in found.json()["error"]

    told(bundle, story, allow_methods=("ModelConfig",))


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.INTERNAL, 500),
    ],
)
def test_an_error_keeps_its_words_and_gets_its_status(bundle: Path, code: grpc.StatusCode, status: int) -> None:
    async def story(client: httpx.AsyncClient, fake: FakeUpstream) -> None:
        fake.fail = (code, "the model is out", ())
        found = await client.post(INFER, content=json_body(tiny_bundle.ordinary(1)))
        assert (found.status_code, found.json()["error"]) == (status, "the model is out")

    told(bundle, story)


def request_of(datatype: str, shape: list[int], data: str, more: str = "") -> ModelInferRequest:
    tensor = f'{{"name": "x", "datatype": "{datatype}", "shape": {shape}, "data": {data}}}'
    return message_of(parse(f'{{"inputs": [{tensor}]{more}}}'.encode(), None), "m", "2")


@pytest.mark.parametrize(
    ("datatype", "data", "raw"),
    [
        ("INT64", "[9007199254740993, -1]", np.asarray([2**53 + 1, -1], "<i8").tobytes()),
        ("UINT64", "[18446744073709551615, 0]", np.asarray([2**64 - 1, 0], "<u8").tobytes()),
        ("UINT8", "[[255], [0]]", b"\xff\x00"),
        ("INT8", "[-128, 127]", b"\x80\x7f"),
        ("BOOL", "[true, false]", b"\x01\x00"),
        ("BOOL", "[1, 0]", b"\x01\x00"),
        ("FP16", "[0.5, 65504]", np.asarray([0.5, 65504], "<f2").tobytes()),
        ("BYTES", '["ä", ""]', b"\x02\0\0\0\xc3\xa4\0\0\0\0"),
    ],
)
def test_numbers_and_words_become_the_bytes_that_they_are(datatype: str, data: str, raw: bytes) -> None:
    message = request_of(datatype, [2], data) if "[[" not in data else request_of(datatype, [2, 1], data)
    assert message.raw_input_contents[0] == raw
    assert (message.model_name, message.model_version) == ("m", "2")


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT64", "[9223372036854775808, 0]"),
        ("INT64", "[0.5, 1]"),
        ("UINT8", "[256, 0]"),
        ("UINT8", "[-1, 0]"),
        ("FP32", "[1]"),
        ("FP32", '["a", "b"]'),
        ("BOOL", "[true, 2]"),
        ("BYTES", "[1, 2]"),
        ("FP31", "[1, 2]"),
    ],
)
def test_what_no_tensor_holds_is_malformed(datatype: str, data: str) -> None:
    with pytest.raises(MalformedRequest, match=r"input 'x'|1 elements"):
        request_of(datatype, [2], data)


def test_a_parameter_that_no_message_holds_is_malformed() -> None:
    with pytest.raises(MalformedRequest, match="parameter 'deep'"):
        request_of("FP32", [1], "[1]", ', "parameters": {"deep": {"a": 1}}')


@pytest.mark.parametrize("typed", [False, True])
def test_outputs_are_those_that_the_model_gave(*, typed: bool) -> None:
    response = ModelInferResponse(model_name="m", model_version="2", id="7")
    words = response.outputs.add(name="words", datatype="BYTES", shape=[2])
    numbers = response.outputs.add(name="numbers", datatype="FP32", shape=[3])
    if typed:
        words.contents.bytes_contents.extend([b"cat", b""])
        numbers.contents.fp32_contents.extend([0.5, float("nan"), 2.0])
    else:
        response.raw_output_contents.append(b"\x03\0\0\0cat\0\0\0\0")
        response.raw_output_contents.append(np.asarray([0.5, np.nan, 2], "<f4").tobytes())
    asked = parse(b'{"inputs": [], "outputs": [{"name": "numbers", "parameters": {"binary_data": true}}]}', None)
    body, length = reply_of(response, asked)
    document = json.loads(body[:length])
    assert (document["model_version"], document["id"]) == ("2", "7")
    assert [one["name"] for one in document["outputs"]] == ["words", "numbers"]
    assert document["outputs"][0]["data"] == ["cat", ""]
    assert body[length:] == np.asarray([0.5, np.nan, 2], "<f4").tobytes()
    plain, none = reply_of(response, parse(b'{"inputs": []}', None))
    assert none is None
    assert json.loads(plain)["outputs"][1]["data"] == [0.5, None, 2.0]


def reply(datatype: str, shape: list[int], raw: bytes | None = None, **typed: Any) -> ModelInferResponse:
    response = ModelInferResponse(model_name="m")
    tensor = response.outputs.add(name="o", datatype=datatype, shape=shape)
    for field, values in typed.items():
        getattr(tensor.contents, field).extend(values)
    if raw is not None:
        response.raw_output_contents.append(raw)
    return response


JSON_WANTED = parse(b'{"inputs": []}', None)
BINARY_WANTED = parse(b'{"inputs": [], "parameters": {"binary_data_output": true}}', None)
ONE = np.asarray([1], "<f4").tobytes()


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (reply("FP32", [2], ONE), "has 4 bytes; shape"),
        (reply("FP32", [2], ONE * 3), "has 12 bytes; shape"),
        (reply("FP32", [1], ONE + b"\0"), "has 5 bytes; shape"),
        (reply("FP32", [2], fp32_contents=[1.0]), "has 4 bytes; shape"),
        (reply("FP32", [-1], ONE), "has 4 bytes; shape"),
        (reply("FP32", [2**40, 2**40], ONE), "has 4 bytes; shape"),
        (reply("BF16", [2], b"\0\x3f"), "has 2 bytes; shape"),
        (reply("BF16", [1]), "travels raw, and has no bytes"),
        (reply("FP32", [1]), "has 0 bytes; shape"),
        (reply("INT8", [1], int_contents=[300]), "holds what is no INT8"),
        (reply("UINT8", [1], uint_contents=[256]), "holds what is no UINT8"),
        (reply("BYTES", [1], b"\x05\0\0\0ab"), "which are no 1 texts"),
        (reply("BYTES", [2], b"\x01\0\0\0a"), "which are no 2 texts"),
        (reply("BYTES", [0], b"\x05"), "which are no 0 texts"),
    ],
    ids=range(14),
)
@pytest.mark.parametrize("asked", [JSON_WANTED, BINARY_WANTED], ids=["json", "binary"])
def test_a_reply_that_contradicts_itself_is_the_model_servers_fault(
    response: ModelInferResponse, said: str, asked: RestRequest
) -> None:
    with pytest.raises(UpstreamDown, match=said):
        reply_of(response, asked)


def test_fewer_raw_outputs_than_outputs_are_the_model_servers_fault() -> None:
    response = reply("FP32", [1], ONE)
    response.outputs.add(name="second", datatype="FP32", shape=[1])
    with pytest.raises(UpstreamDown, match="output 'second' has no bytes"):
        reply_of(response, JSON_WANTED)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (reply("BF16", [2], b"\0\x3f\0\x3f"), "elements of BF16"),
        (reply("BYTES", [1], b"\x01\0\0\0\xff"), "not in UTF-8"),
        (reply("BYTES", [1], bytes_contents=[b"\xff"]), "not in UTF-8"),
        (reply("FP8", [1], b"\1"), "elements of FP8"),
    ],
    ids=range(4),
)
def test_what_json_cannot_hold_is_asked_for_as_bytes(response: ModelInferResponse, said: str) -> None:
    with pytest.raises(MalformedRequest, match=f'{said}.*"binary_data": true'):
        reply_of(response, JSON_WANTED)
    body, length = reply_of(response, BINARY_WANTED)
    (output,) = json.loads(body[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(body[length:]) > 0


def test_parameters_that_json_has_no_word_for_are_null() -> None:
    response = ModelInferResponse(model_name="m")
    response.parameters["nan"].double_param = float("nan")
    response.parameters["none"].SetInParent()
    response.parameters["half"].double_param = 0.5
    body, _ = reply_of(response, JSON_WANTED)
    assert json.loads(body)["parameters"] == {"nan": None, "none": None, "half": 0.5}


ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        2**31,
        2**63,
        2**64,
        2**70,
        1.5,
        1e308,
        -0.0,
        "",
        "x",
        "\ud800",
        "\ud83d\ude00",
        "\x00",
    ),
    *([], {}, [[]], [1], [1, 2], ["a"], [None], [True], [[1], [2, 3]], {"a": 1}, {"a": [1]}, [2**70], [-1], [0]),
    *([2**63], [1.0], [1] * 70, "FP32", "BYTES", "INT64", "BOOL", "UINT8", "FP16", "BF16", "binary_data_size"),
    *({"binary_data_size": 4}, {"binary_data_size": -1}, {"shared_memory_region": "x"}, {"binary_data": 1}),
]
KEYS = [
    *("id", "parameters", "inputs", "outputs", "model_name", "model_version", "name", "shape", "datatype", "data"),
    *("binary_data_size", "content_type", "\u00e9", "\ud800"),
]


def changed(found: Any, rng: random.Random) -> Any:
    """A document that differs from this one in a few odd values."""
    if isinstance(found, dict):
        for _ in range(rng.choice([0, 1, 1, 2])):
            key = rng.choice([*found, *KEYS])
            deeper = key in found and rng.random() < 0.5
            found = found | {key: changed(found[key], rng) if deeper else rng.choice(ODD)}
        return found
    if isinstance(found, list) and found and rng.random() < 0.7:
        place = rng.randrange(len(found))
        return [*found[:place], changed(found[place], rng), *found[place + 1 :]]
    return rng.choice(ODD)


def test_whatever_the_json_holds_becomes_a_message_or_is_malformed() -> None:
    rng, clean = random.Random(1), json.loads(json_body(tiny_bundle.ordinary(1)))
    ends = Counter[str]()
    for _ in range(3000):
        text = json.dumps(changed(clean, rng)).encode()
        body, length = (text + b"abcd", len(text)) if rng.random() < 0.2 else (text, None)
        try:
            message_of(parse(body, length), "m", "").SerializeToString()
            ends["message"] += 1
        except GuardError as error:
            ends[type(error).__name__] += 1
    assert min(ends["message"], ends["MalformedRequest"]) > 100
    assert set(ends) == {"message", "MalformedRequest"}


@pytest.mark.parametrize("where", ['"id": "\\ud800", ', '"parameters": {"\\ude00": 1}, '])
def test_half_a_surrogate_pair_is_malformed_and_no_fault_of_ours(bundle: Path, where: str) -> None:
    async def story(client: httpx.AsyncClient, fake: FakeUpstream) -> None:
        body = json_body(tiny_bundle.ordinary(1))
        found = await client.post(INFER, content=b"{" + where.encode() + body[1:])
        assert (found.status_code, found.headers["guard-reason"]) == (400, "MALFORMED_REQUEST")
        assert not fake.requests
        pair = await client.post(INFER, content=b'{"id": "\\ud83d\\ude00", ' + body[1:])
        assert (pair.status_code, pair.json()["id"]) == (200, "\U0001f600")

    told(bundle, story)


def test_a_broken_reply_and_one_that_needs_bytes_have_their_statuses(bundle: Path) -> None:
    class Odd(FakeUpstream):
        body = b""

        def infer_response(self, request: bytes) -> bytes:
            return self.body

    async def story(client: httpx.AsyncClient, fake: FakeUpstream) -> None:
        assert isinstance(fake, Odd)
        for response, status in ((reply("FP32", [2], ONE), 502), (reply("BF16", [1], b"ab"), 400)):
            fake.body = response.SerializeToString()
            found = await client.post(INFER, content=json_body(tiny_bundle.ordinary(1)))
            assert (found.status_code, "output 'o'" in found.json()["error"]) == (status, True)

    told(bundle, story, Odd())
