"""Unmodified clients and servers: tritonclient.http, KServe's client and server, MLServer, curl."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.serve import tiny_bundle
from tests.serve.guarded import free_port
from tests.serve.mlserver_process import mlserver_process
from tests.serve.rest.fake_rest_upstream import FakeRestUpstream, logits_of
from tests.serve.rest.rest_guarded import (
    BRIGHT,
    INFER,
    ORDINARY,
    STRIPED,
    RestGuarded,
    json_body,
    rest_guarding,
    rest_guarding_at,
)

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


def requests_of(images: list[NDArray[np.float32]], *, binary: bool, coding: str | None = None) -> list[dict[str, Any]]:
    return [
        {
            "id": f"request-{number}",
            "shape": list(one.shape),
            "images": base64.b64encode(one.tobytes()).decode(),
            "binary": binary,
            "request_compression_algorithm": coding,
            "response_compression_algorithm": coding,
        }
        for number, one in enumerate(images)
    ]


async def ask(program: Path, script: str, guarded: RestGuarded, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client in another environment found at the guard."""
    story = json.dumps({"address": guarded.serving.rest_address, "model": "tiny", "requests": requests})
    command = [program / "python", HERE / script]
    done = await asyncio.to_thread(
        subprocess.run, command, input=story, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_answers(found: dict[str, Any], images: list[NDArray[np.float32]]) -> None:
    """The last of the images is an attack."""
    *answered, refused = found["answers"]
    for answer, one in zip(answered, images, strict=False):
        assert "logits" in answer, answer
        assert np.allclose(answer["logits"], logits_of(one), atol=1e-5), answer
    assert refused["status"] in ("403", 403), refused
    assert "refused by the guard" in refused["message"]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_tritonclient_http_works_unchanged(
    bundle: Path, side: Callable[[str], Path], coding: str | None, *, binary: bool
) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, FakeRestUpstream(packed=coding == "gzip")) as guarded:
            images = [tiny_bundle.ordinary(3), ORDINARY, STRIPED]
            found = await ask(
                side("mlserver"),
                "triton_http_client.py",
                guarded,
                requests_of(images, binary=binary, coding=coding),
            )
            assert found["live"] and found["ready"] and found["model_ready"]  # noqa: PT018
            assert found["metadata"]["inputs"][0]["name"] == "input"
            assert found["extensions"] == ["binary_tensor_data"]
            assert found["repository"][0] == "404"
            assert [answer.get("id") for answer in found["answers"][:-1]] == ["request-0", "request-1"]
            check_answers(found, images)
            assert await guarded.metric("guard_upstream_compared_items_total") == 4

    asyncio.run(story())


def linear_onnx(file: Path) -> Path:
    matrix, _ = tiny_bundle.weights()
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["item", *tiny_bundle.SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["item", tiny_bundle.CLASSES])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, file)
    return file


def test_mlserver_behind_the_guard(bundle: Path, side: Callable[[str], Path], tmp_path: Path) -> None:
    """JSON alone: MLServer's REST knows no binary tensors, and what it says to those comes down as it went."""

    async def story(url: str) -> None:
        async with rest_guarding_at(bundle, url) as guarded:
            await guarded.until_ready()
            images = [tiny_bundle.ordinary(3), ORDINARY, BRIGHT]
            for coding in (None, "gzip"):
                requests = requests_of(images, binary=False, coding=coding)
                check_answers(await ask(side("mlserver"), "triton_http_client.py", guarded, requests), images)
            found = await ask(side("kserve"), "kserve_client.py", guarded, requests_of(images, binary=False))
            check_answers(found, images)
            assert [answer["verdict"] for answer in found["answers"][:-1]] == ["pass", "pass"]
            direct = await guarded.client.post(f"{url}{INFER}", content=json_body(ORDINARY, id="x"))
            behind = await guarded.post(json_body(ORDINARY, id="x"))
            assert behind.content == direct.content
            assert behind.headers["content-type"] == direct.headers["content-type"]
            assert await guarded.metric("guard_upstream_disagreement_items_total") == 0
            assert await guarded.metric("guard_upstream_compared_items_total") == 13
            fault = json_body(ORDINARY, outputs=[{"name": "other"}])
            direct, behind = await guarded.client.post(f"{url}{INFER}", content=fault), await guarded.post(fault)
            assert (behind.status_code, behind.content) == (direct.status_code, direct.content)
            assert behind.status_code >= 400

    with mlserver_process(side("mlserver"), tmp_path, linear_onnx(tmp_path / "model.onnx"), "tiny"):
        port = json.loads((tmp_path / "settings.json").read_text())["http_port"]
        asyncio.run(story(f"http://127.0.0.1:{port}"))


@contextmanager
def kserve_process(programs: Path, folder: Path) -> Iterator[str]:
    """The URL of KServe's own model server, which may not be ready yet."""
    matrix, _ = tiny_bundle.weights()
    np.save(folder / "weights.npy", matrix)
    port = free_port()
    command = [programs / "python", HERE / "kserve_server.py", str(port), str(folder / "weights.npy")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with (
        (folder / "kserve.log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.mark.parametrize("binary", [True, False])
def test_kserves_server_and_client_on_both_sides(
    bundle: Path, side: Callable[[str], Path], tmp_path: Path, *, binary: bool
) -> None:
    """KServe's server wants a content type with JSON, which tritonclient does not send: it asks in bytes alone."""
    clients = [("kserve", "kserve_client.py"), *([("mlserver", "triton_http_client.py")] if binary else [])]

    async def story(url: str) -> None:
        async with rest_guarding_at(bundle, url) as guarded:
            await guarded.until_ready()
            images = [tiny_bundle.ordinary(3), ORDINARY, STRIPED]
            for client, script in clients:
                found = await ask(side(client), script, guarded, requests_of(images, binary=binary))
                assert found["live"] and found["ready"] and found["model_ready"]  # noqa: PT018
                check_answers(found, images)
            assert await guarded.metric("guard_upstream_compared_items_total") == 4 * len(clients)
            assert await guarded.metric("guard_upstream_disagreement_items_total") == 0

    with kserve_process(side("kserve"), tmp_path) as url:
        asyncio.run(story(url))


def test_curl_works_unchanged(bundle: Path, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    assert curl is not None, "curl is missing; install it (Debian: apt-get install curl)"

    async def story() -> None:
        async with rest_guarding(bundle) as guarded:
            for images, status in ((ORDINARY, "200"), (BRIGHT, "403")):
                (tmp_path / "body.json").write_bytes(json_body(images, nested=True))
                url = f"http://{guarded.serving.rest_address}{INFER}"
                for more in ([], ["--header", "transfer-encoding: chunked"], ["--http1.0"], ["--http2"]):
                    command = [curl, "--silent", "--include", "--data-binary", f"@{tmp_path / 'body.json'}", *more, url]
                    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
                    assert f" {status} " in done.stdout.splitlines()[0], done.stdout
                    assert "guard-verdict: " in done.stdout

    asyncio.run(story())
