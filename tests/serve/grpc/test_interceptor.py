"""The guard as an interceptor of a model server in Python: every kind of handler, on threads and in an event loop."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

import guard
from guard.errors import DeviceError
from guard.local_guard import LocalGuard
from guard.serve.grpc.interceptor import AioServerInterceptor, ServerInterceptor
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest, ModelInferResponse
from guard.serve.log import Log
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import Client, calling, infer_request
from tests.serve.mlserver_process import mlserver_process

CLEAN, STRIPED = tiny_bundle.ordinary(), tiny_bundle.striped()
TWICE = infer_request(CLEAN)  # raw and typed: which of them a server reads differs
TWICE.inputs[0].contents.fp32_contents.extend(CLEAN.ravel().tolist())
ANSWER = FakeUpstream().infer_response
KINDS = ["threads", "threads, bytes", "loop", "loop, bytes", "loop, not a coroutine"]
STREAM_KINDS = ["threads", "loop, generator", "loop, reading and writing"]


@pytest.fixture(scope="module")
def local(bundle: Path) -> LocalGuard:
    return guard.open(bundle, threads=1)


@dataclass
class ModelServer:
    """A small model server in Python, and what reached its handlers."""

    kind: str
    seen: list[bytes] = field(default_factory=list)
    log: io.StringIO = field(default_factory=io.StringIO)

    def answer(self, request: Any, context: Any) -> ModelInferResponse:
        body = request if isinstance(request, bytes) else request.SerializeToString()
        self.seen.append(body)
        context.set_trailing_metadata((("of-the-server", "1"),))
        return ModelInferResponse.FromString(ANSWER(body))

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]

    def handlers(self) -> dict[str, Any]:
        async def answered(request: Any, context: Any) -> Any:
            return self.answer(request, context)

        def streamed(requests: Iterator[Any], context: Any) -> Iterator[Any]:
            for request in requests:
                yield self.answer(request, context)

        async def generated(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            async for request in requests:
                yield self.answer(request, context)

        async def written(requests: AsyncIterator[Any], context: Any) -> None:
            async for request in requests:
                await context.write(self.answer(request, context))

        serial: dict[str, Any] = {
            "request_deserializer": None if "bytes" in self.kind else ModelInferRequest.FromString,
            "response_serializer": ModelInferResponse.SerializeToString,
        }
        threads = self.kind.startswith("threads")
        unary = self.answer if threads or "not a coroutine" in self.kind else answered
        stream = streamed if threads else written if "writing" in self.kind else generated
        return {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(unary, **serial),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(stream, **serial),
            "ModelReady": grpc.unary_unary_rpc_method_handler(lambda request, context: b"ready"),
        }


@asynccontextmanager
async def serving(kind: str, local: LocalGuard, **options: Any) -> AsyncIterator[tuple[ModelServer, Client]]:
    model = ModelServer(kind)
    handlers = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", model.handlers())
    options = {"log": Log("debug", model.log), **options}
    no_reuse = [("grpc.so_reuseport", 0)]
    if kind.startswith("threads"):
        pool = ThreadPoolExecutor(4)
        server: Any = grpc.server(pool, interceptors=[ServerInterceptor(local, **options)], options=no_reuse)
    else:
        server = grpc.aio.server(interceptors=[AioServerInterceptor(local, **options)], options=no_reuse)
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    started = server.start()
    if started is not None:
        await started
    try:
        async with calling(f"127.0.0.1:{port}") as client:
            yield model, client
    finally:
        stopped = server.stop(None)
        if asyncio.iscoroutine(stopped):
            await stopped
        else:
            await asyncio.to_thread(stopped.wait)


Story = Callable[[ModelServer, Client], Any]


def tell(kind: str, local: LocalGuard, story: Story, **options: Any) -> None:
    async def told() -> None:
        async with serving(kind, local, **options) as (model, client):
            await story(model, client)

    asyncio.run(asyncio.wait_for(told(), 30))


@pytest.mark.parametrize("kind", KINDS)
def test_clean_is_answered_and_crafted_never_reaches_the_model(local: LocalGuard, kind: str) -> None:
    async def story(model: ModelServer, client: Client) -> None:
        request = infer_request(CLEAN, id="a")
        found = await client.call("ModelInfer", request)
        assert found.ok, found.details
        assert found.body == ANSWER(request.SerializeToString())
        assert (found.trailing["guard-verdict"], found.trailing["of-the-server"]) == ("pass", "1")
        bad = await client.infer(np.concatenate([CLEAN, STRIPED]), id="b")
        assert (bad.code.name, bad.reason) == ("PERMISSION_DENIED", "REJECTED")
        assert bad.trailing["guard-verdict"] == "reject"
        assert str(bad.trailing["guard-id"]) in bad.details
        assert model.seen == [request.SerializeToString()]
        (line,) = model.events("reject")
        assert (line["request_id"], line["suspicious"], line["model"]) == ("b", [1], "tiny")
        assert (await client.call("ModelReady", b"")).body == b"ready" or not kind.startswith("threads")

    tell(kind, local, story)


@pytest.mark.parametrize("kind", ["threads", "loop"])
def test_what_cannot_be_inspected_gets_the_sidecars_status(local: LocalGuard, kind: str) -> None:
    async def story(model: ModelServer, client: Client) -> None:
        shared = infer_request(CLEAN)
        shared.inputs[0].parameters["shared_memory_region"].string_param = "x"
        for request, status, reason in (
            (b"\xff\xff", "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
            (b"", "NOT_FOUND", "UNKNOWN_MODEL"),
            (TWICE, "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
            (shared, "FAILED_PRECONDITION", "UNINSPECTABLE"),
            (infer_request(CLEAN * np.float32(np.nan)), "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
            (infer_request(CLEAN, name="other"), "NOT_FOUND", "UNKNOWN_MODEL"),
        ):
            found = await client.call("ModelInfer", request)
            assert (found.code.name, found.reason) == (status, reason)
        assert model.seen == []
        found = await client.infer(STRIPED, name="open")
        assert (found.ok, found.trailing["guard-verdict"]) == (True, "unchecked")

    tell(kind, local, story, allow_models=["open"])


@pytest.mark.parametrize("kind", STREAM_KINDS)
def test_a_stream_ends_at_the_first_message_that_may_not_pass(local: LocalGuard, kind: str) -> None:
    async def story(model: ModelServer, client: Client) -> None:
        sent = [
            infer_request(one, id=str(i)).SerializeToString() for i, one in enumerate([CLEAN, CLEAN, STRIPED, CLEAN])
        ]
        start: Any = client.channel.stream_stream(path("ModelStreamInfer"))
        call = start(timeout=10)
        for number in range(2):
            await call.write(sent[number])
            assert await call.read() == ANSWER(sent[number])
        await call.write(sent[2])
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "message 3" in await call.details()
        assert dict(await call.trailing_metadata())["guard-verdict"] == "reject"
        assert model.seen == sent[:2]

    tell(kind, local, story)


@pytest.mark.parametrize("kind", STREAM_KINDS)
def test_a_clean_stream_is_the_servers_own(local: LocalGuard, kind: str) -> None:
    async def story(model: ModelServer, client: Client) -> None:
        sent = [infer_request(CLEAN, id=str(i)).SerializeToString() for i in range(5)]
        start: Any = client.channel.stream_stream(path("ModelStreamInfer"))
        assert [reply async for reply in start(iter(sent), timeout=10)] == [ANSWER(one) for one in sent]

    tell(kind, local, story)


@pytest.mark.parametrize("kind", ["threads", "loop"])
@pytest.mark.parametrize(
    ("mode", "on_failure", "request_", "verdict"),
    [
        ("flag", "closed", infer_request(STRIPED), "pass"),
        ("shadow", "closed", infer_request(STRIPED), "pass"),
        ("shadow", "closed", TWICE, "unchecked"),
        ("flag", "open", TWICE, None),
        ("off", "closed", infer_request(STRIPED), "unchecked"),
    ],
    ids=["flag", "shadow", "shadow, malformed", "flag, malformed", "off"],
)
def test_the_mode_decides_as_in_the_sidecar(
    bundle: Path, kind: str, mode: Any, on_failure: Any, request_: Any, verdict: str | None
) -> None:
    async def story(model: ModelServer, client: Client) -> None:
        found = await client.call("ModelInfer", request_)
        assert found.trailing.get("guard-verdict") == verdict
        assert len(model.seen) == (verdict is not None)

    tell(kind, guard.open(bundle, threads=1, mode=mode, on_failure=on_failure), story)


@pytest.mark.parametrize("kind", ["threads", "loop"])
@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_a_fault_is_no_way_past_the_guard(
    bundle: Path, kind: str, on_failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = guard.open(bundle, threads=1, on_failure=on_failure)

    def fail(*_: Any, **__: Any) -> Any:
        raise DeviceError("no device") if on_failure == "closed" else RuntimeError("it broke")

    monkeypatch.setattr(type(broken.runtime), "read", fail)

    async def story(model: ModelServer, client: Client) -> None:
        found = await client.infer(CLEAN)
        if on_failure == "open":
            assert (found.ok, found.trailing["guard-verdict"]) == (True, "unchecked")
            assert len(model.events("unchecked")) == 1
        else:
            assert not found.ok
            assert model.seen == []

    tell(kind, broken, story)


def test_the_event_loop_goes_on_while_a_request_is_inspected(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = guard.open(bundle, threads=1)
    real = type(slow.runtime).read

    def read(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return real(*arguments, **options)

    monkeypatch.setattr(type(slow.runtime), "read", read)

    async def story(model: ModelServer, client: Client) -> None:
        asking = asyncio.create_task(client.infer(CLEAN))
        turns = 0
        while not asking.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 3
        assert (await asking).ok

    tell("loop", slow, story)


@pytest.mark.parametrize("kind", ["threads", "loop"])
def test_many_clients_at_once_get_each_their_own_verdict(local: LocalGuard, kind: str) -> None:
    async def story(model: ModelServer, client: Client) -> None:
        found = await asyncio.gather(*(client.infer((CLEAN, STRIPED)[i % 2]) for i in range(40)))
        assert [one.ok for one in found] == [True, False] * 20
        assert len({one.trailing["guard-id"] for one in found}) == 40

    tell(kind, local, story)


@pytest.mark.parametrize("kind", ["threads", "loop"])
def test_unary_and_streaming_sides_may_be_mixed(local: LocalGuard, kind: str) -> None:
    """A handler that takes a stream of requests for ModelInfer, or answers with one, is no way around."""

    async def story(model: ModelServer, client: Client) -> None:
        assert (await client.infer(CLEAN)).ok
        assert (await client.infer(STRIPED)).code is grpc.StatusCode.PERMISSION_DENIED
        assert len(model.seen) == 1

    original = ModelServer.handlers

    def handlers(self: ModelServer) -> dict[str, Any]:
        stream = original(self)["ModelStreamInfer"]
        return {"ModelInfer": stream}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelServer, "handlers", handlers)
        tell(kind, local, story)


class Handlers:
    """Handlers of one arity: they abort as soon as they have a request, or answer it once."""

    def __init__(self, *, aborts: bool) -> None:
        self.aborts, self.seen = aborts, 0

    def on_a_thread(self, *, of_many: bool, in_many: bool) -> Any:
        def answer(request: Any, context: Any) -> bytes:
            request = next(request) if of_many else request
            self.seen += 1
            if self.aborts:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
            return ANSWER(request)

        def answers(request: Any, context: Any) -> Iterator[bytes]:
            yield answer(request, context)

        return answers if in_many else answer

    def in_the_loop(self, *, of_many: bool, in_many: bool) -> Any:
        async def answer(request: Any, context: Any) -> bytes:
            request = await anext(aiter(request)) if of_many else request
            self.seen += 1
            if self.aborts:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
            return ANSWER(request)

        async def answers(request: Any, context: Any) -> AsyncIterator[bytes]:
            yield await answer(request, context)

        return answers if in_many else answer


@pytest.mark.parametrize("in_many", [False, True], ids=["to one", "to many"])
@pytest.mark.parametrize("of_many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("kind", ["threads", "loop", "loop, on threads"])
def test_the_end_that_a_handler_gives_its_call_is_the_calls(
    local: LocalGuard, kind: str, *, of_many: bool, in_many: bool
) -> None:
    """An abort too, whatever the arity of a handler, and whether it is a coroutine."""
    arity = f"{'stream' if of_many else 'unary'}_{'stream' if in_many else 'unary'}_rpc_method_handler"

    async def ends(*, aborts: bool) -> tuple[list[grpc.StatusCode], int]:
        found = Handlers(aborts=aborts)
        made = (found.in_the_loop if kind == "loop" else found.on_a_thread)(of_many=of_many, in_many=in_many)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ModelServer, "handlers", lambda _: {"ModelInfer": getattr(grpc, arity)(made)})
            async with serving(kind, local) as (_, client):
                return [(await client.infer(images)).code for images in (CLEAN, STRIPED)], found.seen

    async def story() -> None:
        ok, missing, denied = (grpc.StatusCode[name] for name in ("OK", "NOT_FOUND", "PERMISSION_DENIED"))
        # a handler that takes many is begun before its first message is there
        assert await ends(aborts=True) == ([missing, denied], 1)
        assert await ends(aborts=False) == ([ok, denied], 1)

    asyncio.run(asyncio.wait_for(story(), 60))


MLSERVER = """#!{python}
# MLServer as its own command starts it, but that the gRPC server which it makes has one interceptor more.
import sys
sys.path.insert(0, {root!r})
import grpc.aio, guard, mlserver.grpc.server
from guard.serve.grpc.interceptor import AioServerInterceptor
from mlserver.cli import main
make = grpc.aio.server
def server(*arguments, interceptors=(), **options):
    inspecting = AioServerInterceptor(guard.open({bundle!r}, threads=1))
    return make(*arguments, interceptors=[inspecting, *interceptors], **options)
mlserver.grpc.server.aio.server = server
main()
"""


@pytest.mark.slow
def test_mlserver_inspects_in_its_own_process(
    bundle: Path, root: Path, side: Callable[[str], Path], tmp_path: Path
) -> None:
    """MLServer brings messages of its own under the same names as the guard's, another protobuf, and decorators."""
    (programs := tmp_path / "bin").mkdir()
    command = programs / "mlserver"
    python = side("mlserver") / "python"
    command.write_text(MLSERVER.format(python=python, root=str(root), bundle=str(bundle)), encoding="utf-8")
    command.chmod(0o755)
    (model := tmp_path / "tiny.onnx").write_bytes(tiny_bundle.classifier())

    async def story(address: str) -> None:
        async with calling(address) as client:
            for method in ("ModelInfer", "ModelStreamInfer"):
                found = await client.call(method, infer_request(CLEAN))
                assert found.ok, found.details
                response = ModelInferResponse.FromString(found.body)
                assert response.outputs[0].name == "logits"
                bad = await client.call(method, infer_request(STRIPED))
                assert (bad.code.name, bad.reason) == ("PERMISSION_DENIED", "REJECTED")
            assert (await client.infer(CLEAN)).trailing["guard-verdict"] == "pass"

    with mlserver_process(programs, tmp_path, model, tiny_bundle.MODEL_NAME) as address:
        asyncio.run(story(address))
