"""What an HTTP client sees through the guard: bytes as they came, verdicts, modes, statuses, and what is counted."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.bundle import Bundle
from guard.config import OF_A_MODEL, ServeConfig
from guard.model_config import ModelConfig
from guard.runtime import Runtime
from tests.serve import tiny_bundle
from tests.serve.rest.fake_rest_upstream import FakeRestUpstream, logits_of
from tests.serve.rest.rest_guarded import (
    BRIGHT,
    INFER,
    ORDINARY,
    STRIPED,
    binary_body,
    json_body,
    rest_guarding,
    tensor_of,
)


@pytest.mark.parametrize("form", ["flat", "nested", "binary"])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_a_clean_request_goes_up_as_it_came_and_its_answer_comes_down_as_it_went(
    bundle: Path, form: str, coding: str | None
) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, FakeRestUpstream(packed=coding == "gzip")) as guarded:
            images = tiny_bundle.ordinary(3)
            body, headers = binary_body(images, id="mine") if form == "binary" else (b"", {})
            body = body or json_body(images, nested=form == "nested", id="mine")
            if coding is not None:
                body = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
                headers["content-encoding"] = coding
            answer = await guarded.post(body, {**headers, "accept-encoding": "gzip"})
            assert answer.status_code == 200, answer.text
            assert guarded.upstream.bodies == [body]
            assert (guarded.upstream.tensors[0] == images).all()
            assert answer.headers["guard-verdict"] == "pass"
            up = dict(guarded.upstream.headers[0])
            assert up["guard-id"] == answer.headers["guard-id"]
            assert up["x-request-id"] == "mine"
            assert up.get("content-encoding") == coding
            logits = logits_of(images)
            if form == "binary":
                assert answer.content.endswith(logits.tobytes())
                assert int(answer.headers["inference-header-content-length"]) == len(answer.content) - logits.nbytes
            else:
                assert np.allclose(answer.json()["outputs"][0]["data"], logits.ravel())
            assert await guarded.metric("guard_requests_total", action="pass", model="tiny") == 1
            assert await guarded.metric("guard_upstream_compared_items_total") == 3
            assert await guarded.metric("guard_upstream_disagreement_items_total") == 0
            assert await guarded.metric("guard_http_handled_total", procedure="ModelInfer", code="200") == 1

    asyncio.run(story())


@pytest.mark.parametrize("images", [BRIGHT, STRIPED], ids=["by screen", "by interpret"])
@pytest.mark.parametrize("form", ["json", "binary"])
def test_an_adversarial_request_is_refused_and_never_forwarded(bundle: Path, form: str, images: Any) -> None:
    async def story() -> None:
        async with rest_guarding(bundle) as guarded:
            body, headers = binary_body(images) if form == "binary" else (json_body(images, id="7"), {})
            answer = await guarded.post(body, headers)
            assert answer.status_code == 403
            assert answer.json()["error"].startswith("refused by the guard: ")
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["guard-verdict"] == "reject"
            assert answer.headers["guard-reason"] == "REJECTED"
            assert guarded.upstream.bodies == []
            (line,) = guarded.events("reject")
            assert line["id"] == answer.headers["guard-id"]
            assert line["p_value"] <= tiny_bundle.REJECT_RATE
            assert await guarded.metric("guard_requests_total", action="reject", model="tiny") == 1
            assert await guarded.metric("guard_http_handled_total", procedure="ModelInfer", code="403") == 1

    asyncio.run(story())


def test_both_doors_give_one_verdict_and_one_p_value(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle) as guarded:
            wanted = Runtime.open(Bundle.open(bundle)).read(STRIPED)
            for body, headers in ((json_body(STRIPED), {}), binary_body(STRIPED)):
                await guarded.post(body, headers)
            assert [line["p_value"] for line in guarded.events("reject")] == [float(wanted.p_value[0])] * 2

    asyncio.run(story())


@pytest.mark.parametrize(
    ("mode", "status", "action", "verdict"),
    [
        ("enforce", 403, "reject", "reject"),
        ("flag", 200, "would_reject", "pass"),
        ("shadow", 200, "would_reject", "pass"),
        ("off", 200, "unchecked", "unchecked"),
    ],
)
def test_modes(bundle: Path, mode: str, status: int, action: str, verdict: str) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, mode=mode) as guarded:
            answer = await guarded.infer(BRIGHT)
            assert (answer.status_code, answer.headers["guard-verdict"]) == (status, verdict)
            assert await guarded.metric("guard_requests_total", action=action) == 1

    asyncio.run(story())


@pytest.mark.parametrize("form", ["flat", "nested", "binary"])
@pytest.mark.parametrize("coding", [None, "gzip"])
def test_a_repaired_request_goes_up_in_the_form_in_which_it_came(bundle: Path, form: str, coding: str | None) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, repair="steps") as guarded:
            images = tiny_bundle.flagged(Bundle.open(bundle))
            body, headers = binary_body(images, id="r") if form == "binary" else (b"", {})
            body = body or json_body(images, nested=form == "nested", id="r")
            sent = gzip.compress(body) if coding else body
            answer = await guarded.post(sent, headers | ({"content-encoding": "gzip"} if coding else {}))
            assert answer.status_code == 200, answer.text
            (up,) = guarded.upstream.bodies
            up = gzip.decompress(up) if coding else up
            (tensor,) = guarded.upstream.tensors
            assert up != body
            assert not (tensor == images).all()
            if form == "binary":
                end = int(headers["Inference-Header-Content-Length"])
                assert up[:end] == body[:end]
            else:
                before, after = json.loads(body), json.loads(up)
                changed = after["inputs"][0].pop("data")
                before["inputs"][0].pop("data")
                assert after == before
                assert np.shape(changed) == (images.shape if form == "nested" else (images.size,))
            (line,) = guarded.events("repair")
            assert line["sha256_before"] == hashlib.sha256(images.tobytes()).hexdigest()
            assert line["sha256_after"] == hashlib.sha256(tensor.tobytes()).hexdigest()

    asyncio.run(story())


def test_a_stale_bundle_is_noticed_by_rest_answers_too(bundle: Path) -> None:
    async def story() -> None:
        for packed in (False, True):
            async with rest_guarding(bundle, FakeRestUpstream(wrong=True, packed=packed)) as guarded:
                for body, headers in ((json_body(ORDINARY), {}), binary_body(ORDINARY)):
                    assert (await guarded.post(body, headers)).status_code == 200
                assert await guarded.metric("guard_upstream_disagreement_items_total") == 2

    asyncio.run(story())


def shared(images: Any) -> bytes:
    tensor = tensor_of(images, parameters={"shared_memory_region": "r", "shared_memory_byte_size": images.nbytes})
    return json.dumps({"inputs": [tensor]}).encode()


BODY = json_body(ORDINARY)
STATUSES: dict[str, tuple[bytes, dict[str, str], int, str]] = {  # body, headers, status, reason
    "not JSON": (b"{", {}, 400, "MALFORMED_REQUEST"),
    "empty": (b"", {}, 400, "MALFORMED_REQUEST"),
    "NaN": (BODY.replace(b'"data": [', b'"data": [NaN, ', 1), {}, 400, "MALFORMED_REQUEST"),
    "Infinity": (json_body(np.full_like(ORDINARY, np.inf)), {}, 400, "MALFORMED_REQUEST"),
    "ragged": (BODY.replace(b'"data": [', b'"data": [[1], ', 1), {}, 400, "MALFORMED_REQUEST"),
    "a key twice": (BODY.replace(b'"data"', b'"data": [0], "data"', 1), {}, 400, "MALFORMED_REQUEST"),
    "inputs twice": (BODY[:-1] + b', "inputs": []}', {}, 400, "MALFORMED_REQUEST"),
    "too short a binary": (
        binary_body(ORDINARY)[0][:-1],
        binary_body(ORDINARY)[1],
        400,
        "MALFORMED_REQUEST",
    ),
    "a length beyond the body": (BODY, {"Inference-Header-Content-Length": "99999"}, 400, "MALFORMED_REQUEST"),
    "shared memory": (shared(ORDINARY), {}, 400, "UNINSPECTABLE"),
    "gzip that is none": (BODY, {"content-encoding": "gzip"}, 400, "MALFORMED_REQUEST"),
    "gzip cut off": (gzip.compress(BODY)[:-3], {"content-encoding": "gzip"}, 400, "MALFORMED_REQUEST"),
    "gzip twice": (gzip.compress(BODY) * 2, {"content-encoding": "gzip"}, 400, "MALFORMED_REQUEST"),
    "brotli": (BODY, {"content-encoding": "br"}, 400, "MALFORMED_REQUEST"),
    "utf-16": (BODY, {"content-type": "application/json; charset=utf-16"}, 400, "MALFORMED_REQUEST"),
    "a bomb": (gzip.compress(bytes(50_000_000)), {"content-encoding": "gzip"}, 413, "TOO_LARGE"),
    "too large": (b" " * 5_000_000, {}, 413, "TOO_LARGE"),
    "another model in the body": (json_body(ORDINARY, model_name="other"), {}, 400, "MALFORMED_REQUEST"),
}


@pytest.mark.parametrize("case", STATUSES)
def test_what_is_wrong_with_a_request_is_told_and_nothing_of_it_goes_up(bundle: Path, case: str) -> None:
    async def story() -> None:
        body, headers, status, reason = STATUSES[case]
        async with rest_guarding(bundle, max_message_bytes=1_000_000) as guarded:
            answer = await guarded.post(body, headers)
            assert (answer.status_code, answer.headers["guard-reason"]) == (status, reason), answer.text
            assert answer.json()["error"]
            assert guarded.upstream.bodies == []
            assert await guarded.metric("guard_refused_total", reason=reason.lower()) == 1
            assert await guarded.metric("guard_requests_total", action="refused") == 1
            assert (await guarded.infer(ORDINARY)).status_code == 200

    asyncio.run(story())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("POST /v2/models/other/infer", 404),
        ("POST /v2/models/tiny/versions/9/infer", 404),
        ("POST /v2/models/tiny%2Finfer", 404),
        ("POST /v2/models/tiny/infer/", 404),
        ("POST /v2//models/tiny/infer", 404),
        ("POST /v2/models/../models/tiny/infer", 404),
        ("POST /v2/models/tiny/generate", 404),
        ("POST /v2/models/tiny/infer_stream", 404),
        ("POST /V2/models/tiny/infer", 404),
        ("POST /v1/models/tiny:predict", 404),
        ("POST /v2/repository/index", 404),
        ("POST /v2/repository/models/tiny/load", 404),
        ("GET /v2/models/stats", 404),
        ("GET /v2/models/tiny/stats", 404),
        ("GET /v2/models/tiny/config", 404),
        ("POST /v2/systemsharedmemory/region/r/register", 404),
        ("GET /v2/logging", 404),
        ("GET /", 404),
        ("GET /metrics", 404),
        ("GET /v2/models/tiny/infer", 405),
        ("POST /v2/health/ready", 405),
        ("DELETE /v2/models/tiny", 405),
    ],
)
def test_what_is_not_open_is_refused_and_never_reaches_the_model_server(bundle: Path, sent: str, status: int) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, FakeRestUpstream(name="triton", versions=("1",))) as guarded:
            head = f"{sent} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(BODY)}\r\n\r\n"
            answer = await guarded.raw(head.encode() + BODY)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
            assert b'{"error":' in answer
            assert guarded.upstream.bodies == []
            assert not [line for line in guarded.upstream.targets if line not in POLLED]

    asyncio.run(story())


POLLED = ("GET /v2", "GET /v2/health/ready", "GET /v2/models/tiny/ready", "GET /v2/models/tiny")


def test_allow_methods_opens_a_path_as_it_opens_its_procedure(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, allow_methods=("@statistics", "RepositoryIndex")) as guarded:
            answer = await guarded.client.get("/v2/models/tiny/versions/1/stats?x=1")
            assert answer.status_code == 200
            assert answer.headers["guard-verdict"] == "unchecked"
            assert guarded.upstream.targets[-1] == "GET /v2/models/tiny/versions/1/stats?x=1"
            answer = await guarded.client.post("/v2/repository/index", content=b'{"ready": true}')
            assert answer.json() == {"other": "/v2/repository/index", "body": '{"ready": true}'}
            assert (await guarded.client.post("/v2/repository/models/tiny/load")).status_code == 404
            assert await guarded.metric("guard_unchecked_total", reason="allowed_method") == 2
            assert await guarded.metric("guard_calls_total", method="ModelStatistics", outcome="opened") == 1
            assert await guarded.metric("guard_calls_total", method="RepositoryModelLoad", outcome="refused") == 1

    asyncio.run(story())


def test_health_and_metadata_are_open_and_the_guards_own_where_they_are_about_it(bundle: Path) -> None:
    async def story() -> None:
        fake = FakeRestUpstream(extensions=("binary_tensor_data", "system_shared_memory", "statistics"))
        async with rest_guarding(bundle, fake) as guarded:
            get = guarded.client.get
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
                assert (await get(path)).status_code == 200
            assert (await get("/v2/models/tiny")).json()["inputs"][0]["name"] == "input"
            server = await get("/v2")
            assert server.json() == {"name": "fake", "version": "1", "extensions": ["binary_tensor_data"]}
            guarded.serving.readiness.say("bundle", "the bundle is stale")
            assert (await get("/v2/health/live")).status_code == 200
            for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
                answer = await get(path)
                assert (answer.status_code, answer.json()) == (503, {"ready": False, "error": "the bundle is stale"})

    asyncio.run(story())


def test_headers_of_one_hop_and_the_guards_own_do_not_travel(bundle: Path) -> None:
    async def story() -> None:
        fake = FakeRestUpstream(more_headers={"guard-verdict": "pass-forged", "x-theirs": "kept", "keep-alive": "9"})
        async with rest_guarding(bundle, fake) as guarded:
            mine = {
                "guard-verdict": "forged",
                "guard-id": "forged",
                "Connection": "x-hop, content-encoding",
                "x-hop": "1",
                "content-encoding": "gzip",
                "te": "trailers",
                "x-mine": "kept",
                "x-request-id": "abc",
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "authorization": "Bearer of-the-model-server",
            }
            answer = await guarded.post(gzip.compress(json_body(ORDINARY)), mine)
            assert answer.status_code == 200, answer.text
            up = dict(guarded.upstream.headers[0])
            assert up["guard-id"] == answer.headers["guard-id"] != "forged"
            assert up["x-mine"] == "kept"
            assert up["authorization"] == "Bearer of-the-model-server"
            assert up["x-request-id"] == "abc"
            assert up["content-encoding"] == "gzip"
            assert up["guard-verdict"] == "pass"
            assert not {"x-hop", "te"} & set(up)
            assert answer.headers["guard-verdict"] == "pass"
            assert answer.headers["x-theirs"] == "kept"
            assert "keep-alive" not in answer.headers
            await guarded.post(json_body(BRIGHT), {"x-request-id": "abc", "traceparent": mine["traceparent"]})
            (line,) = guarded.events("reject")
            assert line["request_id"] == "abc"
            assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"

    asyncio.run(story())


def test_the_model_servers_own_error_comes_down_as_it_went(bundle: Path) -> None:
    async def story() -> None:
        fake = FakeRestUpstream(fail=(422, b'{"detail": "mine"}'), more_headers={"x-theirs": "1"})
        async with rest_guarding(bundle, fake) as guarded:
            answer = await guarded.infer(ORDINARY)
            assert (answer.status_code, answer.content) == (422, b'{"detail": "mine"}')
            assert answer.headers["x-theirs"] == "1"
            assert answer.headers["guard-verdict"] == "pass"
            assert await guarded.metric("guard_requests_total", action="failed") == 1
            assert await guarded.metric("guard_upstream_failures_total", code="HTTP_422") == 1

    asyncio.run(story())


def test_a_model_that_is_allowed_passes_uninspected_and_marked(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, allow_models=("other",)) as guarded:
            answer = await guarded.post(json_body(BRIGHT), path="/v2/models/other/infer")
            assert (answer.status_code, answer.headers["guard-verdict"]) == (200, "unchecked")
            assert guarded.upstream.targets[-1] == "POST /v2/models/other/infer"
            assert await guarded.metric("guard_unchecked_total", reason="allowed_model") == 1

    asyncio.run(story())


WORDS = {"inputs": [{"name": "t", "shape": [1], "datatype": "BYTES", "data": ["x" * 200_000]}]}
ODD = {
    "long texts": (json.dumps(WORDS).encode(), {}),
    "no JSON": (b"{", {}),
    "brotli": (b"whatever it is", {"content-encoding": "br"}),
    "utf-16": (BODY.decode().encode("utf-16"), {"content-type": "application/json; charset=utf-16"}),
}


@pytest.mark.parametrize("case", ODD)
def test_what_the_operator_lets_pass_does_so_whatever_its_body_is(bundle: Path, case: str) -> None:
    """The path names the model: that is enough for one that nobody inspects."""
    body, headers = ODD[case]

    async def story() -> None:
        async with rest_guarding(bundle, allow_models=("other",), max_message_bytes=1_000_000) as guarded:
            await guarded.post(body, headers, path="/v2/models/other/infer")
            assert guarded.upstream.bodies == [body]
            assert await guarded.metric("guard_unchecked_total", reason="allowed_model") == 1
            for path, status in ((INFER, 400), ("/v2/models/third/infer", 404)):
                assert (await guarded.post(body, headers, path=path)).status_code == status
            named = json_body(ORDINARY, model_name="tiny")
            assert (await guarded.post(named, path="/v2/models/other/infer")).status_code == 400
            assert guarded.upstream.bodies == [body]

    asyncio.run(story())


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_model_that_is_not_enforced_passes_what_is_malformed_beside_one_that_is(
    bundle: Path, tmp_path: Path, mode: str
) -> None:
    table = {setting: getattr(ServeConfig(), setting) for setting in OF_A_MODEL} | {"bundle": str(bundle)}
    models = (ModelConfig(**table, key="tiny"), ModelConfig(**{**table, "mode": mode}, key="loose"))

    async def story() -> None:
        async with rest_guarding(bundle, models=models) as guarded:
            await guarded.post(b"{", path="/v2/models/loose/infer")
            assert guarded.upstream.bodies == [b"{"]
            assert (await guarded.post(b"{")).status_code == 400
            assert await guarded.metric("guard_unchecked_total", model="loose") == 1

    asyncio.run(story())
