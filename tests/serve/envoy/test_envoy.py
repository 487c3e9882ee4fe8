"""A real Envoy with the shipped configuration: what its clients get, what the model server gets, how often it asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from guard.serve.grpc.upstream import path
from tests.serve import tiny_bundle
from tests.serve.envoy.envoy_process import configuration, envoy_process
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import Client, Guarded, calling, guarding_at, infer_request, metric_of
from tests.side import StaleError, shelf

pytestmark = [pytest.mark.slow, pytest.mark.large]

SOON_S = 5.0  # for what must not hang; Envoy's own time for a check is 6 s
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture(scope="module", autouse=True)
def envoy_is_built(no_envoy: str) -> None:
    try:
        shelf("envoy")
    except StaleError:
        pytest.skip(no_envoy)


@dataclass
class Setup:
    """A model server behind Envoy, the guard that Envoy asks, and clients of Envoy and of the model server."""

    guarded: Guarded
    model: FakeUpstream
    client: Client
    direct: Client

    async def checks(self) -> float:
        """How often Envoy has asked."""
        return await metric_of(self.guarded.serving.metrics_address, "grpc_server_handled_total")


@asynccontextmanager
async def envoy_before(
    bundle: Path, folder: Path, changes: dict[str, str] | None = None, **settings: Any
) -> AsyncIterator[Setup]:
    fake = FakeUpstream()
    async with (
        listening(fake) as model,
        guarding_at(bundle, model, fake, authz_listen="127.0.0.1:0", **settings) as guarded,
    ):
        await guarded.until_ready()
        assert guarded.serving.authz is not None
        text = configuration(guarded.serving.authz.address, model, **(changes or {}))
        with envoy_process(folder, text) as address:
            async with calling(address) as client, calling(model) as direct:
                yield Setup(guarded, fake, client, direct)


def told(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60.0))


def test_clean_passes_as_it_came_and_crafted_is_denied_with_one_check_each(bundle: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async with envoy_before(bundle, tmp_path) as setup:
            own = (("guard-verdict", "pass"), ("guard-other", "x"), ("key", "value"))
            clean = infer_request(tiny_bundle.ordinary(2), id="one")
            found = await setup.client.call("ModelInfer", clean, metadata=own)
            assert found.body == (await setup.direct.call("ModelInfer", clean)).body
            assert found.initial["guard-verdict"] == "pass"
            assert setup.model.requests[0] == clean.SerializeToString()
            up = setup.model.headers[0]
            assert (up["guard-verdict"], up["guard-id"], up["key"]) == ("pass", found.initial["guard-id"], "value")
            assert "guard-other" not in up

            crafted = await setup.client.infer(np.concatenate([tiny_bundle.ordinary(), tiny_bundle.striped()]))
            assert (crafted.code.name, crafted.reason) == ("PERMISSION_DENIED", "REJECTED")
            assert str(crafted.trailing["guard-id"]) in crafted.details
            assert len(setup.model.requests) == 2
            assert await setup.checks() == 2
            assert (await setup.client.call("ServerReady", b"")).ok
            assert await setup.checks() == 3

    told(story())


def test_each_refusal_keeps_its_status_and_its_reason(bundle: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async with envoy_before(bundle, tmp_path) as setup:
            ordinary = tiny_bundle.ordinary()
            for found, status, reason in (
                (await setup.client.infer(ordinary, name="other"), "NOT_FOUND", "UNKNOWN_MODEL"),
                (await setup.client.infer(ordinary[:, :, :3]), "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
                (
                    await setup.client.infer(tiny_bundle.ordinary(100), compression=grpc.Compression.Gzip),
                    *("FAILED_PRECONDITION", "UNINSPECTABLE"),
                ),
                (await setup.client.infer(tiny_bundle.ordinary(2800)), "RESOURCE_EXHAUSTED", "TOO_LARGE"),
                (await setup.client.call("ModelConfig", b""), "UNIMPLEMENTED", "NOT_ALLOWED"),
            ):
                assert (found.code.name, found.reason) == (status, reason)
            assert setup.model.requests == []
            assert await setup.checks() == 5

    told(story())


@pytest.mark.parametrize(
    ("partial", "status"), [("true", "FAILED_PRECONDITION"), ("false", None)], ids=["sent in part", "never sent"]
)
def test_a_body_beyond_envoys_limit_does_not_pass(
    bundle: Path, tmp_path: Path, partial: str, status: str | None
) -> None:
    async def story() -> None:
        changes = {
            "max_request_bytes: 16777216": "max_request_bytes: 200",
            "allow_partial_message: false": f"allow_partial_message: {partial}",
        }
        async with envoy_before(bundle, tmp_path, changes) as setup:
            found = await setup.client.infer(tiny_bundle.ordinary(40))
            assert not found.ok
            assert status is None or (found.code.name, found.reason) == (status, "UNINSPECTABLE")
            assert setup.model.requests == []
            assert (await setup.client.infer(tiny_bundle.ordinary())).ok

    told(story())


def test_a_route_that_sends_no_body_along_denies(bundle: Path, tmp_path: Path) -> None:
    async def story() -> None:
        changes = {"match: {path: /inference.GRPCInferenceService/ModelInfer}": "match: {path: /nothing}"}
        async with envoy_before(bundle, tmp_path, changes) as setup:
            found = await setup.client.infer(tiny_bundle.ordinary())
            assert (found.code.name, found.reason) == ("FAILED_PRECONDITION", "UNINSPECTABLE")
            assert "with_request_body" in found.details

    told(story())


def test_two_messages_in_one_call_are_denied(bundle: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async with envoy_before(bundle, tmp_path) as setup:
            start: Any = setup.client.channel.stream_stream(path("ModelInfer"))
            call = start(timeout=SOON_S)
            for images in (tiny_bundle.ordinary(), tiny_bundle.striped()):
                await call.write(infer_request(images).SerializeToString())
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "exactly one" in await call.details()
            assert setup.model.requests == []

    told(story())


def test_streams_do_not_hang(bundle: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async with envoy_before(bundle, tmp_path) as setup:
            for method, code, words in (
                (path("ModelStreamInfer"), grpc.StatusCode.UNIMPLEMENTED, "the guard does not pass"),
                (REFLECTION, grpc.StatusCode.UNIMPLEMENTED, f"no {REFLECTION}"),  # the model server's own word
            ):
                start: Any = setup.client.channel.stream_stream(method)
                call = start(timeout=SOON_S)
                await call.write(b"")  # and no end of the client's messages
                assert await call.code() is code
                assert words in await call.details()

    told(story())


def test_an_opened_stream_answers_each_message_as_it_comes(bundle: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async with envoy_before(bundle, tmp_path, allow_methods=("ModelStreamInfer",)) as setup:
            start: Any = setup.client.channel.stream_stream(path("ModelStreamInfer"))
            call = start(timeout=SOON_S)
            for text in (b"one", b"two"):
                await call.write(text)
                assert await call.read() == b"streamed " + text
            assert dict(await call.initial_metadata())["guard-verdict"] == "unchecked"
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await setup.checks() == 1

    told(story())


def test_many_calls_at_once_are_checked_once_each(bundle: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async with envoy_before(bundle, tmp_path) as setup:
            images = [tiny_bundle.ordinary(), tiny_bundle.striped()] * 40
            found = await asyncio.gather(*(setup.client.infer(one) for one in images))
            assert [one.ok for one in found] == [True, False] * 40
            assert {one.code.name for one in found} == {"OK", "PERMISSION_DENIED"}
            assert await setup.checks() == 80
            assert len(setup.model.requests) == 40

    told(story())


def test_nothing_passes_where_the_guard_is_gone(bundle: Path, tmp_path: Path) -> None:
    async def story() -> None:
        fake = FakeUpstream()
        async with listening(fake) as model:
            async with guarding_at(bundle, model, fake, authz_listen="127.0.0.1:0") as guarded:
                assert guarded.serving.authz is not None
                text = configuration(guarded.serving.authz.address, model)
            with envoy_process(tmp_path, text) as address:
                async with calling(address) as client:
                    assert (await client.infer(tiny_bundle.ordinary())).code is grpc.StatusCode.PERMISSION_DENIED
                    assert fake.requests == []

    told(story())
