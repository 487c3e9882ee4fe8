"""A guard before a model server of which only the HTTP address is known: REST works, gRPC says why it does not."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

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


class MlServer(FakeRestUpstream):
    """It lists packages in a model's metadata, and its versions in the index of its repository."""

    def __init__(self, index: list[str] | None) -> None:
        """Make it with these versions of the model; None: it never answers for its index."""
        super().__init__(name="mlserver", versions=("sklearn/0.20.1",))
        self.index = index

    async def other(self, request: Request) -> Response:
        if request.url.path != "/v2/repository/index":
            return await super().other(request)
        if self.index is None:
            await asyncio.sleep(60)
        return JSONResponse([{"name": "tiny", "version": version, "state": "READY"} for version in self.index or ()])


@pytest.mark.parametrize(
    ("index", "status"),
    [
        (["v1"], {"v1": 200, "v2": 404, "": 200}),
        (["v1", "v2"], {"v1": 404, "v2": 404, "": 404}),
        (None, {"v2": 503, "": 200}),
    ],
    ids=["one", "two", "it hangs"],
)
def test_versions_of_mlserver_are_those_of_its_index(
    bundle: Path, index: list[str] | None, status: dict[str, int]
) -> None:
    async def story() -> None:
        fake = MlServer(index)
        async with listening(fake) as url:
            config = config_for(bundle, "", rest_listen="127.0.0.1:0", rest_upstream=url, upstream_timeout_s=2.0)
            async with running(config, log=Log("error", io.StringIO())) as serving:
                ready = status[""] == 200
                await until(
                    lambda: ready is (serving.readiness.because is None) and "GET /v2/models/tiny" in fake.targets
                )
                base = f"http://{serving.rest_address}/v2/models/tiny"
                async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
                    for version, wanted in status.items():
                        part = f"/versions/{version}" if version else ""
                        answer = await client.post(f"{base}{part}/infer", content=json_body(tiny_bundle.ordinary(1)))
                        assert (version, answer.status_code) == (version, wanted), answer.text

    asyncio.run(asyncio.wait_for(story(), 60))


def test_no_address_at_all_is_an_error(bundle: Path) -> None:
    async def story() -> None:
        with pytest.raises(ConfigError, match="upstream is not set"):
            async with running(config_for(bundle, ""), log=Log("error")):
                pass

    asyncio.run(story())
