"""The guard with the arguments that KServe injects, before a real model server that speaks gRPC alone."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from guard.config import load_config
from guard.kserve_arguments import kserve_settings, rewritten
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.guarded import calling, until
from tests.serve.processes import model_process
from tests.serve.rest.rest_guarded import binary_body, json_body

NAME = "tiny"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.make(tmp_path_factory.mktemp("transformer") / "bundle").path


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_process(tmp_path_factory.mktemp("predictor")) as model:
        address: str = model.until_event("listening")["inference"]
        yield address


def test_http_port_serves_v2_and_grpc_goes_on_as_before(bundle: Path, predictor: str) -> None:
    injected = ["serve", "--model_name", NAME, "--predictor_host", predictor, "--http_port", "0"]
    given = [word for word in rewritten(injected) if "=" in word]
    config = load_config(None, {"GUARD_BUNDLE": str(bundle)}, kserve_settings(given, {}).flags)
    loopback = dict.fromkeys(("listen", "rest_listen", "metrics_listen", "admin_listen"), "127.0.0.1:0")
    assert config.rest_listen == "0.0.0.0:0"

    async def story() -> None:
        async with running(replace(config, **loopback), log=Log("error", io.StringIO())) as serving:
            await until(lambda: serving.readiness.because is None, lambda: str(serving.readiness.because))
            base = f"http://{serving.rest_address}"
            async with httpx.AsyncClient(base_url=base, timeout=20, trust_env=False) as client:
                assert (await client.get("/v2/health/ready")).status_code == 200
                assert (await client.get(f"/v2/models/{NAME}/ready")).status_code == 200
                about = (await client.get(f"/v2/models/{NAME}")).json()
                assert [one["name"] for one in about["inputs"]] == ["input"]
                images = tiny_bundle.ordinary(2)
                path = f"/v2/models/{NAME}/infer"
                as_json = await client.post(path, content=json_body(images))
                body, headers = binary_body(images)
                as_bytes = await client.post(path, content=body, headers=headers)
                crafted = await client.post(path, content=json_body(tiny_bundle.striped(1)))
            async with calling(serving.address) as grpc_client:
                direct = await grpc_client.infer(images)
                assert (await grpc_client.infer(tiny_bundle.striped(1))).reason == "REJECTED"
        assert (as_json.status_code, as_bytes.status_code, crafted.status_code) == (200, 200, 403)
        length = int(as_bytes.headers["inference-header-content-length"])
        logits = np.frombuffer(as_bytes.content[length:], np.float32)
        assert logits.tolist() == direct.logits.tolist()
        assert np.float32(as_json.json()["outputs"][0]["data"]).tolist() == logits.tolist()

    asyncio.run(asyncio.wait_for(story(), 60))
