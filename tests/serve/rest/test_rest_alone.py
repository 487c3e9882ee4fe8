"""A guard before a model server of which only the HTTP address is known: REST works, gRPC says why it does not."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import httpx
import pytest

from guard.errors import ConfigError
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.guarded import calling, config_for, until
from tests.serve.rest.fake_rest_upstream import FakeRestUpstream, listening
from tests.serve.rest.rest_guarded import INFER, json_body


def test_rest_is_inspected_and_grpc_is_told(bundle: Path) -> None:
    async def story() -> None:
        fake = FakeRestUpstream()
        async with listening(fake) as url:
            config = config_for(bundle, "", rest_listen="127.0.0.1:0", rest_upstream=url)
            async with running(config, log=Log("error", io.StringIO())) as serving:
                await until(lambda: serving.readiness.because is None, lambda: str(serving.readiness.because))
                base = f"http://{serving.rest_address}"
                async with httpx.AsyncClient(base_url=base, timeout=20, trust_env=False) as client:
                    assert (await client.post(INFER, content=json_body(tiny_bundle.ordinary(1)))).status_code == 200
                    assert (await client.post(INFER, content=json_body(tiny_bundle.striped(1)))).status_code == 403
                assert len(fake.bodies) == 1
                async with calling(serving.address) as grpc_client:
                    assert (await grpc_client.call("ServerLive", b"")).ok
                    for method in ("ModelInfer", "ModelMetadata", "ModelStreamInfer"):
                        found = await grpc_client.call(method, b"")
                        assert not found.ok, method
                    told = await grpc_client.call("ServerMetadata", b"")
                    assert (told.code.name, "knows no gRPC address" in told.details) == ("UNAVAILABLE", True)

    asyncio.run(asyncio.wait_for(story(), 60))


def test_no_address_at_all_is_an_error(bundle: Path) -> None:
    async def story() -> None:
        with pytest.raises(ConfigError, match="upstream is not set"):
            async with running(config_for(bundle, ""), log=Log("error")):
                pass

    asyncio.run(story())
