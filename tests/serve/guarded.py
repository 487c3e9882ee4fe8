"""What most tests of the sidecar need: a request, a client, a guard before a fake upstream, waiting by polling."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from guard.config import ServeConfig
from guard.manifest import DATATYPES
from guard.serve.grpc.decode import TYPED_FIELD
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest, ModelInferResponse
from guard.serve.log import Log
from guard.serve.server import Serving, running
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening

WIRE_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
PATIENCE_S = 20.0  # of a test that waits for something to become true; it fails, it does not go on


def infer_request(
    images: NDArray[Any], *, form: str = "raw", name: str = tiny_bundle.MODEL_NAME, **fields: Any
) -> ModelInferRequest:
    """A correct request for `images` [item, ...]."""
    message = ModelInferRequest(model_name=name, **fields)
    datatype = WIRE_NAMES[images.dtype]
    tensor = message.inputs.add(name="input", datatype=datatype, shape=images.shape)
    if form == "raw":
        message.raw_input_contents.append(images.tobytes())
    else:
        getattr(tensor.contents, TYPED_FIELD[datatype]).extend(images.ravel().tolist())
    return message


@dataclass(frozen=True)
class Answered:
    """How one call ended."""

    code: grpc.StatusCode
    details: str
    body: bytes
    initial: dict[str, str | bytes]
    trailing: dict[str, str | bytes]

    @property
    def ok(self) -> bool:
        return self.code is grpc.StatusCode.OK

    @property
    def logits(self) -> NDArray[np.float32]:
        return np.frombuffer(ModelInferResponse.FromString(self.body).raw_output_contents[0], np.float32)

    @property
    def reason(self) -> str:
        """From google.rpc.ErrorInfo."""
        status = Status.FromString(self.trailing["grpc-status-details-bin"])
        info = ErrorInfo()
        assert status.details[0].Unpack(info)
        return str(info.reason)


@dataclass
class Client:
    """Calls one address, bytes in and bytes out."""

    channel: grpc.aio.Channel

    async def call(
        self,
        method: str,
        request: bytes | Any,
        *,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout_s: float | None = PATIENCE_S,
        compression: grpc.Compression | None = None,
    ) -> Answered:
        body = request if isinstance(request, bytes) else request.SerializeToString()
        full = method if method.startswith("/") else path(method)
        start: Any = self.channel.unary_unary(full)
        call = start(body, metadata=grpc.aio.Metadata(*metadata), timeout=timeout_s, compression=compression)
        try:
            answer = await call
        except grpc.aio.AioRpcError:
            answer = b""
        return Answered(
            await call.code(),
            await call.details() or "",
            answer,
            dict(await call.initial_metadata() or ()),
            dict(await call.trailing_metadata() or ()),
        )

    async def infer(self, images: NDArray[Any], **options: Any) -> Answered:
        request = infer_request(
            images, **{k: options.pop(k) for k in ("form", "name", "id", "model_version") if k in options}
        )
        return await self.call("ModelInfer", request, **options)


@asynccontextmanager
async def calling(address: str) -> AsyncIterator[Client]:
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield Client(channel)


@dataclass
class Guarded:
    """A guard, the fake it guards, and a client of it."""

    serving: Serving
    upstream: FakeUpstream
    client: Client
    log: io.StringIO = field(repr=False)

    async def until_ready(self) -> None:
        await until(
            lambda: self.serving.readiness.because is None, lambda: f"not ready: {self.serving.readiness.because}"
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        return await metric_of(self.serving.metrics_address, name, **labels)


async def metric_of(address: str, name: str, **labels: str) -> float:
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://{address}/metrics").read().decode())
    samples = [
        sample for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name
    ]
    assert samples, f"no metric {name}"
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def config_for(bundle: Path, upstream: str, **settings: Any) -> ServeConfig:
    """A configuration on free loopback ports, without a drain."""
    loopback = dict.fromkeys(("listen", "admin_listen", "metrics_listen"), "127.0.0.1:0")
    return ServeConfig(
        **{
            "bundle": str(bundle),
            "upstream": upstream,
            "threads": 1,
            "drain_s": 0.0,
            "watch_files": False,
            **loopback,
            **settings,
        }
    )


@asynccontextmanager
async def guarding(bundle: Path, upstream: FakeUpstream | None = None, **settings: Any) -> AsyncIterator[Guarded]:
    """A ready guard in front of a fake upstream."""
    fake = upstream or FakeUpstream()
    async with listening(fake) as address, guarding_at(bundle, address, fake, **settings) as guarded:
        await guarded.until_ready()
        yield guarded


@asynccontextmanager
async def guarding_at(
    bundle: Path, address: str, upstream: FakeUpstream | None = None, **settings: Any
) -> AsyncIterator[Guarded]:
    """A guard, not ready yet, in front of whatever listens at an address."""
    stream = io.StringIO()
    async with (
        running(config_for(bundle, address, **settings), log=Log("debug", stream)) as serving,
        calling(serving.address) as client,
    ):
        yield Guarded(serving, upstream or FakeUpstream(), client, stream)


async def until(holds: Callable[[], bool], otherwise: Callable[[], str] = lambda: "it never held") -> None:
    """Poll until `holds`."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, otherwise()
        await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
