"""A guard that forwards before its verdict, over REST: the model's answer is held, compared, delivered or discarded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import closed_bundle, fake_upstream, tiny_bundle
from tests.serve.closed_bundle import OUTPUT, ClosedUpstream, shares
from tests.serve.guarded import config_for, metric_of, until
from tests.serve.rest.fake_rest_upstream import FakeRestUpstream, listening
from tests.serve.rest.rest_guarded import INFER, binary_body, json_body


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return closed_bundle.make(tmp_path_factory.mktemp("held") / "closed").path


class ClosedRestUpstream(FakeRestUpstream):
    """The closed model over REST."""

    shows = OUTPUT

    async def metadata(self, request: Request) -> Response:
        tensors = {
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, *tiny_bundle.SHAPE]}],
            "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, tiny_bundle.CLASSES]}],
        }
        return JSONResponse({"name": "tiny", "versions": [], **tensors})

    def answer(self, document: dict[str, Any], binary: bytes | None) -> Response:
        super().answer(document, binary)  # it keeps the tensor
        found = shares(self.tensors[-1])
        output = {"name": self.shows, "datatype": "FP32", "shape": list(found.shape), "data": found.ravel().tolist()}
        return JSONResponse({"model_name": "tiny", "outputs": [output]})


@pytest.mark.parametrize("form", ["json", "binary"])
def test_answers_are_held_delivered_and_discarded(closed: Path, form: str) -> None:
    async def story() -> None:
        import httpx

        fake = ClosedRestUpstream()
        async with listening(fake) as url, fake_upstream.listening(ClosedUpstream()) as address:
            config = config_for(closed, address, rest_listen="127.0.0.1:0", rest_upstream=url, forward="before")
            async with (
                running(config, log=Log("error")) as serving,
                httpx.AsyncClient(base_url=f"http://{serving.rest_address}", trust_env=False) as client,
            ):
                await until(lambda: serving.readiness.because is None)
                statuses = {}
                for name, images in (
                    ("agrees", tiny_bundle.ordinary(2)),
                    ("differs", closed_bundle.contested()),
                    ("shows nothing", tiny_bundle.ordinary(2)),
                ):
                    fake.shows = "other" if name == "shows nothing" else OUTPUT
                    body, headers = binary_body(images) if form == "binary" else (json_body(images), {})
                    answer = await client.post(INFER, content=body, headers=headers)
                    statuses[name] = (answer.status_code, answer.headers.get("guard-reason"))
                assert statuses == {
                    "agrees": (200, None),
                    "differs": (403, "REJECTED"),
                    "shows nothing": (503, "UNCHECKED"),
                }
                assert len(fake.bodies) == 3
                for fate in ("delivered", "discarded", "not_compared"):
                    assert await metric_of(serving.metrics_address, "guard_held_answers_total", fate=fate) == 1

    asyncio.run(story())
