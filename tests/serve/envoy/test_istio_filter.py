"""The patches of deploy/istio/envoy-filter.yaml in a real Envoy, as Istio would put them before its router."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from guard.serve.grpc.upstream import path
from tests.deploy.rendered import read
from tests.serve import tiny_bundle
from tests.serve.envoy.envoy_process import configuration, cut, envoy_process, with_istios_retries, without_checks
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import Client, Guarded, calling, guarding_at
from tests.side import ROOT, StaleError, shelf

pytestmark = [pytest.mark.slow, pytest.mark.large]

SOON_S = 5.0
FILE = ROOT / "deploy" / "istio" / "envoy-filter.yaml"
ROUTER = "                  - name: envoy.filters.http.router"


@pytest.fixture(scope="module", autouse=True)
def envoy_is_built(no_envoy: str) -> None:
    try:
        shelf("envoy")
    except StaleError:
        pytest.skip(no_envoy)


@pytest.fixture(scope="module")
def patches(side: Callable[[str], Path]) -> list[Any]:
    (filtering,) = read(FILE.read_text("utf-8"), side("kubectl"))
    return list(filtering["spec"]["configPatches"])


def patched(text: str, patches: list[Any], authz: str) -> str:
    """A proxy's configuration with the patches, as Istio applies them; the guard's port is another one here."""
    for one in copy.deepcopy(patches):
        value = one["patch"]["value"]
        if one["applyTo"] == "CLUSTER":
            endpoint = value["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
            assert endpoint["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 8084}
            endpoint["address"]["socket_address"]["port_value"] = int(authz.rpartition(":")[2])
            text = f"{text.rstrip()}\n    - {json.dumps(value)}\n"
        else:
            assert one["patch"]["operation"] == "INSERT_BEFORE"
            assert text.count(ROUTER) == 1
            text = text.replace(ROUTER, f"                  - {json.dumps(value)}\n{ROUTER}")
    return text


async def through(
    bundle: Path, folder: Path, patches: list[Any], story: Callable[[Guarded, FakeUpstream, Client], Any]
) -> None:
    fake = FakeUpstream()
    async with listening(fake) as model, guarding_at(bundle, model, fake, authz_listen="127.0.0.1:0") as guarded:
        await guarded.until_ready()
        assert guarded.serving.authz is not None
        text = with_istios_retries(without_checks(configuration("127.0.0.1:1", model)))
        text = patched(
            cut(text, "    - name: guard", "    - name: model_server"), patches, guarded.serving.authz.address
        )
        text = text.replace("*http2", json.dumps(HTTP2))
        with envoy_process(folder, text) as address:
            async with calling(address) as client:
                await story(guarded, fake, client)


HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


def test_inferences_are_asked_about_once_and_nothing_else_is(bundle: Path, tmp_path: Path, patches: list[Any]) -> None:
    async def story(guarded: Guarded, fake: FakeUpstream, client: Client) -> None:
        clean = await client.infer(tiny_bundle.ordinary(2))
        assert (clean.ok, clean.initial["guard-verdict"]) == (True, "pass")
        crafted = await client.infer(tiny_bundle.striped())
        assert (crafted.code.name, crafted.reason) == ("PERMISSION_DENIED", "REJECTED")
        assert len(fake.requests) == 1
        assert await guarded.metric("grpc_server_handled_total") == 2
        assert (await client.call("ServerReady", b"")).ok
        for method in ("ModelConfig", "RepositoryModelLoad", "/other.Service/Method"):
            assert (await client.call(method, b"")).code is grpc.StatusCode.PERMISSION_DENIED
        assert await guarded.metric("grpc_server_handled_total") == 2

    asyncio.run(asyncio.wait_for(through(bundle, tmp_path, patches, story), 60))


def test_a_stream_is_denied_and_does_not_hang(bundle: Path, tmp_path: Path, patches: list[Any]) -> None:
    async def story(guarded: Guarded, fake: FakeUpstream, client: Client) -> None:
        start: Any = client.channel.stream_stream(path("ModelStreamInfer"))
        call = start(timeout=SOON_S)
        with suppress(grpc.aio.AioRpcError):  # it may be denied before
            await call.write(b"")  # and no end of the client's messages
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED  # and not DEADLINE_EXCEEDED
        assert "ModelStreamInfer" not in " ".join(fake.calls)

    asyncio.run(asyncio.wait_for(through(bundle, tmp_path, patches, story), 60))


def test_nothing_passes_where_the_guard_is_gone(bundle: Path, tmp_path: Path, patches: list[Any]) -> None:
    async def story(guarded: Guarded, fake: FakeUpstream, client: Client) -> None:
        assert guarded.serving.authz is not None
        await guarded.serving.authz.stop()
        assert not (await client.infer(tiny_bundle.ordinary())).ok
        assert fake.requests == []

    asyncio.run(asyncio.wait_for(through(bundle, tmp_path, patches, story), 60))
