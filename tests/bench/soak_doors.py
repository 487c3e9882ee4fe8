"""The doors of a guard as the soak's clients use them (gRPC, its streams, V2 REST), and all kinds of call."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

import grpc
import grpc.aio
import httpx
import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.serve.grpc.upstream import UPSTREAM_ENDED, path, write_to
from tests.bench.sidecar import Guarded
from tests.serve.guarded import WIRE_NAMES, infer_request

UNREADABLE = b"\xff\xff\xff\xff"
PATIENCE_S = 10.0  # the deadline of calls that have time
CONNECTIONS = 4
OPEN_STREAMS = 8  # that many messages follow each other on
JSON_LENGTH = "Inference-Header-Content-Length"
NAMES: Mapping[int, str] = {  # of statuses of HTTP, as gRPC names what they stand for
    HTTPStatus.OK: "OK",
    HTTPStatus.BAD_REQUEST: "INVALID_ARGUMENT",
    HTTPStatus.FORBIDDEN: "PERMISSION_DENIED",
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.TOO_MANY_REQUESTS: "RESOURCE_EXHAUSTED",
    HTTPStatus.REQUEST_TIMEOUT: "DEADLINE_EXCEEDED",
}


@dataclass(frozen=True)
class RestBody:
    """A request of V2 REST."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of call: how often it comes, what is sent at each door, and how it may end."""

    share: float
    body: bytes  # a ModelInferRequest
    rest: RestBody
    ends: frozenset[str]
    deadline_s: float = PATIENCE_S
    leaves_after_s: float | None = None
    compression: grpc.Compression | None = None


def kinds(bundle: Bundle) -> dict[str, Kind]:
    """All kinds of calls, from the bundle's most and least ordinary samples."""
    model, samples = bundle.manifest.model, bundle.samples
    order = samples.p_values.argsort()
    calm, odd = samples.images[order[-1:]], samples.images[order[:1]]

    def request(items: int, form: str = "raw", images: NDArray[Any] = calm, name: str = model.name) -> bytes:
        message = infer_request(np.repeat(images, items, axis=0), form=form, name=name)
        message.inputs[0].name = model.input.name
        return bytes(message.SerializeToString())

    def rest(items: int, form: str = "raw", images: NDArray[Any] = calm, *, inputs: int = 1, **more: Any) -> RestBody:
        return rest_body(
            model.input.name, np.repeat(images, items, axis=0), form, inputs, more.get("model", model.name)
        )

    rejected = samples.p_values[order[0]] <= bundle.manifest.reject_rate
    ok, left = frozenset({"OK"}), frozenset({"OK", "CANCELLED"})
    late, wrong = frozenset({"OK", "DEADLINE_EXCEEDED"}), frozenset({"INVALID_ARGUMENT"})
    packed, refused = rest(8), frozenset({"PERMISSION_DENIED"}) if rejected else ok
    packed = RestBody(gzip.compress(packed.body), {**packed.headers, "content-encoding": "gzip"}, model.name)
    return {
        "one item": Kind(0.40, request(1), rest(1), ok),
        "one item, typed": Kind(0.10, request(1, "typed"), rest(1, "typed"), ok),
        "8 items": Kind(0.14, request(8), rest(8), ok),
        "64 items": Kind(0.03, request(64), rest(64), ok),
        "packed": Kind(0.08, request(8), packed, ok, compression=grpc.Compression.Gzip),
        "attack": Kind(0.08, request(1, images=odd), rest(1, images=odd), refused),
        "taken back": Kind(0.06, request(4), rest(4), left, leaves_after_s=0.002),
        "no time": Kind(0.04, request(8), rest(8), late, deadline_s=0.004),
        "no message": Kind(0.03, UNREADABLE, RestBody(UNREADABLE, {}, model.name), wrong),
        "wrong shape": Kind(0.02, request(1) + request(1), rest(1, inputs=2), wrong),
        "unknown model": Kind(0.02, request(1, name="nobody"), rest(1, model="nobody"), frozenset({"NOT_FOUND"})),
    }


def rest_body(name: str, images: NDArray[Any], form: str, inputs: int, model: str) -> RestBody:
    """The request of V2 REST for images [item, ...], as numbers of JSON (`typed`) or as bytes behind it (`raw`)."""
    tensor: dict[str, Any] = {"name": name, "shape": list(images.shape), "datatype": WIRE_NAMES[images.dtype]}
    if form == "typed":
        tensor["data"] = images.ravel().tolist()
        return RestBody(json.dumps({"inputs": [tensor] * inputs}).encode(), {}, model)
    tensor["parameters"] = {"binary_data_size": images.nbytes}
    document = {"inputs": [tensor] * inputs, "parameters": {"binary_data_output": True}}
    text = json.dumps(document).encode()
    headers = {JSON_LENGTH: str(len(text)), "content-type": "application/octet-stream"}
    return RestBody(text + images.tobytes() * inputs, headers, model)


class Entrance(Protocol):
    """A door of the guard, for clients of one protocol."""

    async def call(self, kind: Kind) -> str:
        """Make a call and return the name of the gRPC status that it ended with, or what stands for it."""


async def connected(address: str, stack: AsyncExitStack) -> list[grpc.aio.Channel]:
    """Connections of their own to a guard."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return [
        await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options)) for _ in range(CONNECTIONS)
    ]


@dataclass
class GrpcEntrance:
    """The unary gRPC door: several connections, each call on the next."""

    calls: Sequence[Any]
    number: int = 0

    @staticmethod
    async def open(guard: Guarded, stack: AsyncExitStack) -> GrpcEntrance:
        return GrpcEntrance(
            [channel.unary_unary(path("ModelInfer")) for channel in await connected(guard.address, stack)]
        )

    async def call(self, kind: Kind) -> str:
        self.number += 1
        start = self.calls[self.number % len(self.calls)]
        call = start(kind.body, timeout=kind.deadline_s, compression=kind.compression)
        if kind.leaves_after_s is not None:
            asyncio.get_running_loop().call_later(kind.leaves_after_s, call.cancel)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error.code().name
        except asyncio.CancelledError:
            return "CANCELLED"
        return "OK"


@dataclass
class Stream:
    """A stream that one message after the other goes through; it is opened again when it has ended."""

    start: Any
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    call: Any = None

    async def ask(self, body: bytes) -> str:
        async with self.turn:
            if self.call is None:
                self.call = self.start()
            end = await answered(self.call, body)
            if end != "OK":
                self.call = None  # a stream with bare replies ends with what it refuses
            return end


async def answered(call: Any, body: bytes) -> str:
    """Send a message on a stream and return "OK" for a reply, else the status with which the stream ended."""
    try:
        await write_to(call, body)
        if await call.read() is not grpc.aio.EOF:
            return "OK"
    except UPSTREAM_ENDED:
        pass
    code: grpc.StatusCode = await call.code()
    return code.name if code is not grpc.StatusCode.OK else "ENDED"


@dataclass
class StreamEntrance:
    """ModelStreamInfer: long streams for what has time, one of its own for each call that has not or is taken back."""

    streams: Sequence[Stream]
    starts: Sequence[Any]
    number: int = 0

    @staticmethod
    async def open(guard: Guarded, stack: AsyncExitStack) -> StreamEntrance:
        starts = [channel.stream_stream(path("ModelStreamInfer")) for channel in await connected(guard.address, stack)]
        return StreamEntrance([Stream(starts[n % CONNECTIONS]) for n in range(OPEN_STREAMS)], starts)

    async def call(self, kind: Kind) -> str:
        self.number += 1
        if kind.leaves_after_s is None and kind.deadline_s == PATIENCE_S:
            return await self.streams[self.number % OPEN_STREAMS].ask(kind.body)
        call = self.starts[self.number % CONNECTIONS](timeout=kind.deadline_s)
        try:
            async with asyncio.timeout(kind.leaves_after_s):  # not by `cancel`: a write that waits would not hear of it
                return await answered(call, kind.body)
        except TimeoutError:
            return "CANCELLED"
        finally:
            call.cancel()


@dataclass
class RestEntrance:
    """The REST door: a client that keeps its connections."""

    client: httpx.AsyncClient

    @staticmethod
    async def open(guard: Guarded, stack: AsyncExitStack) -> RestEntrance:
        client = httpx.AsyncClient(base_url=f"http://{guard.rest}", timeout=PATIENCE_S, trust_env=False)
        return RestEntrance(await stack.enter_async_context(client))

    async def call(self, kind: Kind) -> str:
        sent = kind.rest
        url = f"/v2/models/{sent.model}/infer"
        posted = asyncio.create_task(self.client.post(url, content=sent.body, headers=sent.headers))
        try:
            async with asyncio.timeout(kind.leaves_after_s or kind.deadline_s):
                response = await posted
        except TimeoutError:
            return "DEADLINE_EXCEEDED" if kind.leaves_after_s is None else "CANCELLED"
        except httpx.TransportError as error:
            return type(error).__name__
        return NAMES.get(response.status_code, str(response.status_code))


# A door that is added to the guard gets its line here; `open` takes the guard and a stack for what has to be closed.
ENTRANCES: Mapping[str, Any] = {
    "grpc": GrpcEntrance.open,
    "streams": StreamEntrance.open,
    "rest": RestEntrance.open,
}
