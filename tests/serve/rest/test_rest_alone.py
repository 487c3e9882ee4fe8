"""A guard before a model server of which only the HTTP address is known: REST works, gRPC says why it does not."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from guard.config import SettingsSource
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


class OneModel(FakeRestUpstream):
    """A model server that has one model alone, until it is told otherwise."""

    has = (tiny_bundle.MODEL_NAME,)

    async def readiness(self, request: Request) -> Response:
        name = request.path_params.get("model")
        if name is not None and name not in self.has:
            return Response(b'{"error": "no such model"}', 404)
        return await super().readiness(request)


def test_a_reload_puts_no_model_to_work_that_the_server_lacks_over_http(bundle: Path, tmp_path: Path) -> None:
    """It would make the guard not ready for those that it has."""
    file = tmp_path / "guard.toml"

    async def story() -> None:
        fake = OneModel()
        async with listening(fake) as url:

            def write(*models: str) -> None:
                ports = "".join(
                    f'{name} = "127.0.0.1:0"\n' for name in ("listen", "rest_listen", "admin_listen", "metrics_listen")
                )
                tables = "".join(f'[models.{name}]\nbundle = "{bundle}"\n' for name in models)
                head = f'rest_upstream = "{url}"\nwatch_files = false\nthreads = 1\ndrain_s = 0\n'
                file.write_text(head + ports + tables, "utf-8")

            write("tiny")
            source = SettingsSource(file, {}, {})
            async with running(source.load(), log=Log("error", io.StringIO()), source=source) as serving:
                await until(lambda: serving.readiness.because is None, lambda: str(serving.readiness.because))
                write("tiny", "other")
                with pytest.raises(ConfigError, match=r"other: .* says that model 'other' is not ready \(404\)"):
                    await serving.reloader.reload("test")
                assert serving.models.table.labels == ("tiny",)
                fake.has = ("tiny", "other")
                assert (await serving.reloader.reload("test")).changed == ("other",)
                await until(lambda: serving.readiness.because is None, lambda: str(serving.readiness.because))

    asyncio.run(asyncio.wait_for(story(), 60))


def test_no_address_at_all_is_an_error(bundle: Path) -> None:
    async def story() -> None:
        with pytest.raises(ConfigError, match="upstream is not set"):
            async with running(config_for(bundle, ""), log=Log("error")):
                pass

    asyncio.run(story())
