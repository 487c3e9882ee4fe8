"""A guard with a REST door before fakes of both kinds, and requests of V2 REST."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from guard.serve.log import Log
from guard.serve.server import Serving, running
from tests.serve import fake_upstream, tiny_bundle
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import config_for, metric_of, until
from tests.serve.rest.fake_rest_upstream import FakeRestUpstream, listening

INFER = "/v2/models/tiny/infer"
JSON_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"float32": "FP32", "uint8": "UINT8"}


def tensor_of(images: NDArray[Any], **changes: Any) -> dict[str, Any]:
    datatype = DATATYPES[str(images.dtype)]
    return {"name": "input", "shape": list(images.shape), "datatype": datatype, **changes}


def json_body(images: NDArray[Any], *, nested: bool = False, **fields: Any) -> bytes:
    """A request whose tensor is numbers of JSON."""
    tensor = tensor_of(images, data=(images if nested else images.ravel()).tolist())
    return json.dumps({"inputs": [tensor], **fields}).encode()


def binary_body(images: NDArray[Any], **fields: Any) -> tuple[bytes, dict[str, str]]:
    """A request whose tensor is bytes, and its headers."""
    tensor = tensor_of(images, parameters={"binary_data_size": images.nbytes})
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}, **fields}).encode()
    return text + images.tobytes(), {JSON_LENGTH: str(len(text)), "content-type": "application/octet-stream"}


@dataclass
class RestGuarded:
    """A guard, the fakes behind it, and a client of its REST door."""

    serving: Serving
    upstream: FakeRestUpstream
    client: httpx.AsyncClient
    log: io.StringIO = field(repr=False)

    async def infer(self, images: NDArray[Any], **fields: Any) -> httpx.Response:
        return await self.post(json_body(images, **fields))

    async def post(
        self, body: bytes, headers: dict[str, str] | None = None, path: str = INFER, **options: Any
    ) -> httpx.Response:
        return await self.client.post(path, content=body, headers=headers, **options)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = str(self.serving.rest_address).rpartition(":")
        return host, int(port)

    async def raw(self, sent: bytes) -> bytes:
        """What comes back for these bytes until the guard closes the connection."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(sent)
        try:
            async with asyncio.timeout(20):
                return await reader.read()
        finally:
            writer.close()

    async def until_ready(self) -> None:
        await until(
            lambda: self.serving.readiness.because is None, lambda: f"not ready: {self.serving.readiness.because}"
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]

    async def metric(self, name: str, **labels: str) -> float:
        return await metric_of(self.serving.metrics_address, name, **labels)


@asynccontextmanager
async def rest_guarding(
    bundle: Path, upstream: FakeRestUpstream | None = None, **settings: Any
) -> AsyncIterator[RestGuarded]:
    """A ready guard in front of a REST fake, and of a gRPC one for the other door."""
    fake = upstream or FakeRestUpstream()
    async with listening(fake) as url, rest_guarding_at(bundle, url, fake, **settings) as guarded:
        await guarded.until_ready()
        yield guarded


@asynccontextmanager
async def rest_guarding_at(
    bundle: Path, url: str, upstream: FakeRestUpstream | None = None, **settings: Any
) -> AsyncIterator[RestGuarded]:
    """A guard, not ready yet, in front of whatever listens at a URL."""
    stream = io.StringIO()
    rest = {"rest_listen": "127.0.0.1:0", "rest_upstream": url}
    async with (
        fake_upstream.listening(FakeUpstream()) as address,
        running(config_for(bundle, address, **{**rest, **settings}), log=Log("debug", stream)) as serving,
        httpx.AsyncClient(base_url=f"http://{serving.rest_address}", timeout=20, trust_env=False) as client,
    ):
        yield RestGuarded(serving, upstream or FakeRestUpstream(), client, stream)


ORDINARY, BRIGHT, STRIPED = tiny_bundle.ordinary(1), tiny_bundle.bright(1), tiny_bundle.striped(1)
PIXELS = np.float32
