"""A mesh's retries and a guard that fails closed: with Istio's default policy a call stays one call."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.runtime import Runtime
from tests.serve import tiny_bundle
from tests.serve.envoy.envoy_process import SHIPPED, configuration, envoy_process, with_istios_retries, without_checks
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import Guarded, calling, guarding_at
from tests.side import StaleError, shelf

pytestmark = [pytest.mark.slow, pytest.mark.large]

CALLS = 20
MOST_ATTEMPTS_A_CALL = 1.1
CLOSED = {("UNAVAILABLE", "UNCHECKED"), ("UNAVAILABLE", "BREAKER_OPEN")}


@pytest.fixture(scope="module", autouse=True)
def envoy_is_built(no_envoy: str) -> None:
    try:
        shelf("envoy")
    except StaleError:
        pytest.skip(no_envoy)


def lose_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every program fail from now on, as on a device that is gone."""

    def lost(*given: Any, **options: Any) -> Any:
        raise RuntimeError("the device was lost")

    for name in ("read", "self_check"):
        monkeypatch.setattr(Runtime, name, lost)


async def attempts(guarded: Guarded) -> float:
    return await guarded.metric("grpc_server_handled_total", grpc_method="ModelInfer")


def test_a_guard_that_fails_closed_is_called_once_a_call(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        fake = FakeUpstream()
        async with listening(fake) as model, guarding_at(bundle, model, fake) as guarded:
            await guarded.until_ready()
            text = without_checks(with_istios_retries(configuration("127.0.0.1:1", guarded.serving.address)))
            with envoy_process(tmp_path, text) as address:
                async with calling(address) as client:
                    lose_the_device(monkeypatch)
                    for _ in range(CALLS):
                        found = await client.infer(tiny_bundle.ordinary())
                        assert (found.code.name, found.reason) in CLOSED
            made = await attempts(guarded)
            assert CALLS <= made <= MOST_ATTEMPTS_A_CALL * CALLS
            assert fake.requests == []

    asyncio.run(asyncio.wait_for(story(), 60))


def test_where_another_replica_may_answer_the_mesh_tries_again(bundle: Path, tmp_path: Path) -> None:
    async def story() -> None:
        fake = FakeUpstream()
        async with listening(fake) as model, guarding_at(bundle, model, fake) as guarded:
            await guarded.until_ready()
            text = without_checks(with_istios_retries(configuration("127.0.0.1:1", guarded.serving.address)))
            with envoy_process(tmp_path, text) as address:
                async with calling(address) as client:
                    fake.fail = (grpc.StatusCode.UNAVAILABLE, "the model is out", ())
                    assert not (await client.infer(tiny_bundle.ordinary())).ok
            assert await attempts(guarded) == 3  # the policy is at work: two retries

    asyncio.run(asyncio.wait_for(story(), 60))


def test_a_check_that_fails_is_asked_once_a_call(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        fake = FakeUpstream()
        settings = {"authz_listen": "127.0.0.1:0"}
        async with listening(fake) as model, guarding_at(bundle, model, fake, **settings) as guarded:
            await guarded.until_ready()
            assert guarded.serving.authz is not None
            text = with_istios_retries(configuration(guarded.serving.authz.address, model))
            with envoy_process(tmp_path, text) as address:
                async with calling(address) as client:
                    lose_the_device(monkeypatch)
                    for _ in range(CALLS):
                        found = await client.infer(tiny_bundle.ordinary())
                        assert (found.code.name, found.reason) in CLOSED
            made = await guarded.metric("grpc_server_handled_total")
            assert CALLS <= made <= MOST_ATTEMPTS_A_CALL * CALLS
            assert fake.requests == []

    asyncio.run(asyncio.wait_for(story(), 60))


def test_the_shipped_configuration_has_no_retries_of_its_own() -> None:
    assert "retry_policy" not in SHIPPED.read_text("utf-8")
