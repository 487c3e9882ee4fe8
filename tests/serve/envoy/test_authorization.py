"""Envoy's checks, made by hand: what passes, what is denied, and with which status, headers and counts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.errors import ConfigError
from guard.serve.envoy.asked_request import AskedRequest
from guard.serve.grpc.metadata import OURS
from tests.serve import tiny_bundle
from tests.serve.authority import Authority
from tests.serve.envoy.checks import CHECK, Told, check, check_request, framed
from tests.serve.guarded import Client, Guarded, calling, guarding, infer_request, metric_of

CLEAN = infer_request(tiny_bundle.ordinary(2), id="one").SerializeToString()
CRAFTED = infer_request(np.concatenate([tiny_bundle.ordinary(), tiny_bundle.striped()])).SerializeToString()
BODY = framed(CLEAN)


@asynccontextmanager
async def asking(bundle: Path, **settings: Any) -> AsyncIterator[tuple[Guarded, Client]]:
    """A guard that answers Envoy's checks, and a client of that listener."""
    async with guarding(bundle, authz_listen="127.0.0.1:0", **settings) as guarded:
        assert guarded.serving.authz is not None
        async with calling(guarded.serving.authz.address) as client:
            yield guarded, client


def told(bundle: Path, request: Any, **settings: Any) -> Told:
    async def story() -> Told:
        async with asking(bundle, **settings) as (_, client):
            return await check(client, request)

    return asyncio.run(story())


def test_what_is_ordinary_passes_with_the_verdict_both_ways(bundle: Path) -> None:
    found = told(bundle, check_request(BODY))
    assert found.passes
    assert found.up == found.down
    assert found.up["guard-verdict"] == "pass"
    assert len(found.up["guard-id"]) == 16


def test_what_is_crafted_is_denied_with_status_and_reason(bundle: Path) -> None:
    found = told(bundle, check_request(framed(CRAFTED)))
    assert (found.status, found.http_status, found.reason) == ("PERMISSION_DENIED", 403, "REJECTED")
    assert found.down["grpc-status"] == "7"
    assert found.down["guard-verdict"] == "reject"
    assert found.down["guard-id"] in found.text


def test_a_clients_own_marks_do_not_reach_the_model(bundle: Path) -> None:
    own = {"guard-verdict": "pass", "guard-id": "mine", "guard-other": "x"}
    found = told(bundle, check_request(BODY, headers=own))
    assert found.removed == ["guard-other"]
    assert found.up["guard-id"] != "mine"
    assert all(name.startswith(OURS) for name in found.up)


DENIED = {  # a check, and the status, reason and words of its denial
    "compressed": (check_request(framed(CLEAN, packed=1)), "FAILED_PRECONDITION", "UNINSPECTABLE", "compressed"),
    "odd flag": (check_request(framed(CLEAN, packed=2)), "INVALID_ARGUMENT", "MALFORMED_REQUEST", "its prefix is 02"),
    "clean, then crafted": (
        check_request(BODY + framed(CRAFTED)),
        *("INVALID_ARGUMENT", "MALFORMED_REQUEST", "behind its first message"),
    ),
    "clean twice": (check_request(BODY + BODY), "INVALID_ARGUMENT", "MALFORMED_REQUEST", "exactly one"),
    "a byte more": (check_request(BODY + b"\0"), "INVALID_ARGUMENT", "MALFORMED_REQUEST", "1 bytes behind"),
    "a byte less": (check_request(BODY[:-1]), "INVALID_ARGUMENT", "MALFORMED_REQUEST", "bytes follow"),
    "half a prefix": (check_request(BODY[:4]), "INVALID_ARGUMENT", "MALFORMED_REQUEST", "but 4 bytes"),
    "empty": (check_request(b""), "INVALID_ARGUMENT", "MALFORMED_REQUEST", "but 0 bytes"),
    "no prefix": (check_request(CLEAN), "INVALID_ARGUMENT", "MALFORMED_REQUEST", "no gRPC message"),
    "no protobuf": (check_request(framed(b"\xff\xff")), "INVALID_ARGUMENT", "MALFORMED_REQUEST", "cannot be parsed"),
    "partial": (
        check_request(BODY, headers={"x-envoy-auth-partial-body": "true"}),
        *("FAILED_PRECONDITION", "UNINSPECTABLE", "max_request_bytes"),
    ),
    "shorter than announced": (
        check_request(BODY, size=len(BODY) + 7),
        *("FAILED_PRECONDITION", "UNINSPECTABLE", "not all of it"),
    ),
    "not sent along": (
        check_request(None, without=["x-envoy-auth-partial-body"]),
        *("FAILED_PRECONDITION", "UNINSPECTABLE", "set with_request_body"),
    ),
    "text": (check_request(None, body="text"), "FAILED_PRECONDITION", "UNINSPECTABLE", "pack_as_bytes"),
    "content-encoding": (
        check_request(BODY, headers={"content-encoding": "gzip"}),
        *("FAILED_PRECONDITION", "UNINSPECTABLE", "content-encoding 'gzip'"),
    ),
    "grpc-web": (
        check_request(BODY, headers={"content-type": "application/grpc-web"}),
        *("INVALID_ARGUMENT", "MALFORMED_REQUEST", "grpc-web"),
    ),
    "json": (
        check_request(BODY, headers={"content-type": "application/json"}),
        *("INVALID_ARGUMENT", "MALFORMED_REQUEST", "content-type"),
    ),
    "GET": (check_request(BODY, verb="GET"), "INVALID_ARGUMENT", "MALFORMED_REQUEST", "is 'GET'"),
    "too large": (
        check_request(framed(b"\x12\x00" * 100_000)),
        *("RESOURCE_EXHAUSTED", "TOO_LARGE", "max_message_bytes = 163840"),
    ),
    "another model": (
        check_request(framed(infer_request(tiny_bundle.ordinary(), name="other").SerializeToString())),
        *("NOT_FOUND", "UNKNOWN_MODEL", "no bundle guards model 'other'"),
    ),
}


@pytest.mark.parametrize("name", DENIED)
def test_what_cannot_be_inspected_is_denied(bundle: Path, name: str) -> None:
    request, status, reason, words = DENIED[name]
    found = told(bundle, request)
    assert (found.passes, found.status, found.reason) == (False, status, reason)
    assert words in found.text


PASSING = {
    "with its codec named": check_request(BODY, headers={"content-type": "application/grpc+proto"}),
    "in capitals": check_request(BODY, headers={"content-type": "Application/gRPC; charset=utf-8"}),
    "of the announced size": check_request(BODY, size=len(BODY)),
    "of a call that may pack, and did not": check_request(BODY, headers={"grpc-encoding": "gzip"}),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_differs_in_no_byte_of_the_message_passes(bundle: Path, name: str) -> None:
    assert told(bundle, PASSING[name]).passes


def test_raw_headers_are_read_as_well(bundle: Path) -> None:
    request = check_request(BODY)
    http = request.attributes.request.http
    raw = {**dict(http.headers), "guard-other": "x"}
    http.headers.clear()
    for key, value in raw.items():
        http.header_map.headers.add(key=key, raw_value=value.encode())
    found = told(bundle, request)
    assert found.passes
    assert found.removed == ["guard-other"]


def test_bytes_that_are_no_check_are_denied(bundle: Path) -> None:
    assert told(bundle, b"\xff\xff").reason == "MALFORMED_REQUEST"


HARMLESS = ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"]
BESIDE = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
]


@pytest.mark.parametrize("method", HARMLESS + BESIDE)
def test_harmless_methods_pass_without_a_body_and_without_a_verdict(bundle: Path, method: str) -> None:
    found = told(bundle, check_request(None, method=method))
    assert found.passes
    assert "guard-verdict" not in found.up


@pytest.mark.parametrize(
    "method",
    [
        "ModelStreamInfer",
        "ModelConfig",
        "RepositoryModelLoad",
        "/inference.GRPCInferenceService/ModelInfer?x=1",
        "/inference.GRPCInferenceService/modelinfer",
        "/inference.GRPCInferenceService/ModelInfer/",
        "//inference.GRPCInferenceService/ModelInfer",
        "/v2/models/tiny/infer",
        "/" + "x" * 3000,
        "/",
    ],
)
def test_other_methods_are_denied_unless_they_are_opened(bundle: Path, method: str) -> None:
    found = told(bundle, check_request(None, method=method))
    assert (found.status, found.http_status, found.reason) == ("UNIMPLEMENTED", 404, "NOT_ALLOWED")
    assert len(found.text) < 400


def test_opened_methods_pass_and_are_marked(bundle: Path) -> None:
    found = told(
        bundle,
        check_request(None, method="ModelStreamInfer"),
        allow_methods=("ModelStreamInfer", "@statistics"),
    )
    assert found.up["guard-verdict"] == "unchecked"


def test_what_is_no_grpc_call_gets_no_grpc_status(bundle: Path) -> None:
    plain = {"content-type": "application/json"}
    found = told(bundle, check_request(b"{}", method="/v2/models/tiny/infer", headers=plain))
    assert found.http_status == 404
    assert "grpc-status" not in found.down


@pytest.mark.parametrize(
    ("mode", "message", "passes", "verdict"),
    [
        ("flag", CRAFTED, True, "pass"),
        ("shadow", CRAFTED, True, "pass"),
        ("shadow", b"\xff\xff", True, "unchecked"),
        ("flag", b"\xff\xff", False, None),
        ("off", CRAFTED, True, "unchecked"),
        ("off", b"\xff\xff", True, "unchecked"),
    ],
)
def test_the_mode_decides_as_in_the_sidecar(
    bundle: Path, mode: str, message: bytes, *, passes: bool, verdict: str | None
) -> None:
    found = told(bundle, check_request(framed(message)), mode=mode)
    assert found.passes is passes
    assert found.down.get("guard-verdict") == verdict


@pytest.mark.parametrize(("on_failure", "passes"), [("closed", False), ("open", True)])
def test_on_failure_decides_where_the_engine_fails(bundle: Path, on_failure: str, *, passes: bool) -> None:
    async def story() -> tuple[Told, float]:
        async with asking(bundle, on_failure=on_failure, inspect_timeout_s=1e-6) as (guarded, client):
            found = await check(client, check_request(BODY))
            name = "guard_unchecked_total" if passes else "guard_refused_total"
            return found, await guarded.metric(name, reason="inspection_timeout")

    found, counted = asyncio.run(story())
    assert found.passes is passes
    assert counted == 1
    if not passes:
        assert (found.status, found.reason) == ("UNAVAILABLE", "INSPECTION_TIMEOUT")
        assert found.down["grpc-retry-pushback-ms"] == "-1"


def test_a_fault_of_ours_is_a_denial_and_no_failed_check(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> tuple[Told, list[Any]]:
        async with asking(bundle) as (guarded, client):
            monkeypatch.setattr(AskedRequest, "of", lambda _: (_ for _ in ()).throw(RuntimeError("odd")))
            return await check(client, check_request(BODY)), guarded.events("internal")

    found, events = asyncio.run(story())
    assert (found.status, found.reason) == ("UNAVAILABLE", "UNCHECKED")
    assert "odd" not in found.text
    assert events[0]["cause"] == "RuntimeError('odd')"


def test_checks_are_counted_and_logged_by_the_names_of_the_clients_call(bundle: Path) -> None:
    async def story() -> None:
        async with asking(bundle) as (guarded, client):
            for message in (CLEAN, CRAFTED, b"\xff\xff"):
                await check(client, check_request(framed(message), headers={"x-request-id": "abc"}))
            await check(client, check_request(None, method="ServerReady"))
            await check(client, check_request(None, method="ModelConfig"))
            at = guarded.serving.metrics_address
            for action in ("pass", "reject", "refused"):
                assert await metric_of(at, "guard_requests_total", action=action) == 1
            assert await metric_of(at, "guard_calls_total", method="ServerReady", outcome="passed") == 1
            assert await metric_of(at, "guard_calls_total", method="ModelConfig", outcome="refused") == 1
            assert await metric_of(at, "grpc_server_handled_total") == 5
            assert await metric_of(at, "guard_bytes_in_flight") == 0
            assert [line["request_id"] for line in guarded.events("reject")] == ["abc"]
            assert guarded.upstream.requests == []

    asyncio.run(story())


def test_the_listener_of_checks_answers_nothing_else_but_health(bundle: Path) -> None:
    async def story() -> None:
        async with asking(bundle) as (guarded, client):
            assert (await client.call("/grpc.health.v1.Health/Check", b"")).ok
            assert (await client.infer(tiny_bundle.ordinary())).code.name == "UNIMPLEMENTED"
            assert (await guarded.client.call(CHECK, check_request(BODY))).code.name == "UNIMPLEMENTED"

    asyncio.run(story())


@pytest.mark.parametrize("settings", [{"repair": "steps"}, {"forward": "before"}])
def test_what_this_door_cannot_do_is_refused_at_the_start(bundle: Path, settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"authz_listen excludes {next(iter(settings))} = "):
        told(bundle, check_request(BODY), **settings)


def test_a_guard_without_the_messages_says_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envoy.service.auth.v3", None)
    with pytest.raises(ConfigError, match=r"install inference-guard\[envoy\]"):
        told(bundle, check_request(BODY))


def test_the_caller_is_envoys_client_and_not_envoy(bundle: Path, tmp_path: Path) -> None:
    """A token in the request's own headers counts, and stays behind; what Envoy read in a certificate, too."""
    token = "0123456789abcdef"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"camera {token}\n", "utf-8")

    async def story() -> None:
        async with asking(bundle, principal_from="bearer", client_tokens=str(tokens)) as (guarded, client):
            found = await check(client, check_request(BODY))
            assert (found.status, found.http_status, found.reason) == ("UNAUTHENTICATED", 401, "UNAUTHENTICATED")
            found = await check(client, check_request(BODY, headers={"authorization": f"Bearer {token}"}))
            assert found.passes
            assert found.removed == ["authorization"]
            crafted = check_request(framed(CRAFTED), headers={"authorization": f"Bearer {token}"})
            assert not (await check(client, crafted)).passes
            assert guarded.events("reject")[0]["principal"] == "camera"
            health = check_request(framed(b""), path="/grpc.health.v1.Health/Check")
            assert (await check(client, health)).passes
        settings = {"principal_from": "xfcc", "trusted_hops": ("127.0.0.1",)}
        async with asking(bundle, **settings) as (guarded, client):
            assert not (await check(client, check_request(BODY))).passes
            named = {"x-forwarded-client-cert": "URI=spiffe://mesh/camera"}
            assert (await check(client, check_request(BODY, headers=named))).passes
            assert not (await check(client, check_request(framed(CRAFTED), headers=named))).passes
            assert guarded.events("reject")[0]["principal"] == "spiffe://mesh/camera"

    asyncio.run(story())


def test_a_certificate_that_envoy_has_verified_tells_who_calls(bundle: Path, tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue().write(tmp_path, "guard")
    ca = authority.write(tmp_path, "ca.pem")
    settings = {"principal_from": "tls", "tls_certificate": certificate, "tls_key": key, "tls_client_ca": ca}

    async def story() -> None:
        async with asking(bundle, **settings) as (guarded, client):
            assert (await check(client, check_request(BODY))).status == "UNAUTHENTICATED"
            request = check_request(framed(CRAFTED))
            request.attributes.source.principal = "spiffe://mesh/camera"
            assert (await check(client, request)).status == "PERMISSION_DENIED"
            assert guarded.events("reject")[0]["principal"] == "spiffe://mesh/camera"

    asyncio.run(story())
