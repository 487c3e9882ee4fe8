"""`forward = "together"`: the model is asked while the request is inspected, and its answer held until the verdict."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.errors import ConfigError
from guard.runtime import Runtime
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import PATIENCE_S, config_for, guarding, infer_request, until

ORDINARY, BRIGHT = tiny_bundle.ordinary(1), tiny_bundle.bright(1)
TOGETHER: dict[str, Any] = {"forward": "together"}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A device that runs programs while the event is set."""
    free, read = threading.Event(), Runtime.read

    def slow(runtime: Runtime, *given: Any, **options: Any) -> Any:
        assert free.wait(PATIENCE_S)
        return read(runtime, *given, **options)

    monkeypatch.setattr(Runtime, "read", slow)
    free.set()
    return free


def test_the_model_is_asked_before_the_verdict_and_its_answer_waits_for_that(
    bundle: Path, device: threading.Event
) -> None:
    async def story() -> None:
        async with guarding(bundle, **TOGETHER) as guarded:
            device.clear()
            call = asyncio.create_task(guarded.client.infer(ORDINARY))
            await until(lambda: len(guarded.upstream.requests) == 1)
            await asyncio.wait([call], timeout=0.2)
            assert not call.done()
            device.set()
            answer = await call
            assert answer.ok
            assert answer.trailing["guard-verdict"] == "pass"
            assert guarded.upstream.requests == [infer_request(ORDINARY).SerializeToString()]
            assert await guarded.metric("guard_held_answers_total", fate="delivered") == 1

    asyncio.run(story())


def test_each_of_the_two_can_end_while_the_other_runs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model and device each wait here until the other has begun: one after the other would never end."""
    read, on_device, at_model = Runtime.read, threading.Event(), threading.Event()

    def waiting(runtime: Runtime, *given: Any, **options: Any) -> Any:
        on_device.set()
        assert at_model.wait(PATIENCE_S)
        return read(runtime, *given, **options)

    class Waiting(FakeUpstream):
        async def infer(self, request: bytes, context: Any) -> bytes:
            at_model.set()
            await until(on_device.is_set)
            return await super().infer(request, context)

    async def story() -> None:
        async with guarding(bundle, Waiting(), **TOGETHER) as guarded:
            monkeypatch.setattr(Runtime, "read", waiting)
            assert (await guarded.client.infer(ORDINARY)).ok

    asyncio.run(story())


@pytest.mark.parametrize("hangs", [True, False], ids=["model hangs", "model has answered"])
def test_what_is_rejected_is_cancelled_and_never_delivered(
    bundle: Path, device: threading.Event, *, hangs: bool
) -> None:
    async def story() -> None:
        async with guarding(bundle, **TOGETHER) as guarded:
            guarded.upstream.hang_infer = hangs
            device.clear()
            call = asyncio.create_task(guarded.client.infer(BRIGHT))
            await until(lambda: "ModelInfer" in guarded.upstream.calls)
            device.set()
            answer = await call
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED
            assert answer.body == b""
            assert "not forwarded" not in answer.details
            if hangs:
                await until(lambda: guarded.upstream.cancelled == 1)
            assert await guarded.metric("guard_held_answers_total", fate="discarded") == 1
            assert await guarded.metric("guard_requests_total", action="reject") == 1
            assert guarded.events("reject")[0]["model_asked"] is True

    asyncio.run(story())


@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_a_failed_inspection_cancels_the_call_or_lets_its_answer_pass(
    bundle: Path, device: threading.Event, on_failure: str
) -> None:
    async def story() -> None:
        async with guarding(bundle, **TOGETHER, on_failure=on_failure, inspect_timeout_s=0.2) as guarded:
            device.clear()
            answer = await guarded.client.infer(ORDINARY)
            if on_failure == "closed":
                assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "INSPECTION_TIMEOUT")
            else:
                assert answer.ok
                assert answer.trailing["guard-verdict"] == "unchecked"
            assert len(guarded.upstream.requests) == 1  # it was asked once
            device.set()

    asyncio.run(story())


def test_a_client_that_leaves_ends_both(bundle: Path, device: threading.Event) -> None:
    async def story() -> None:
        async with guarding(bundle, **TOGETHER) as guarded:
            device.clear()
            guarded.upstream.hang_infer = True
            call = asyncio.create_task(guarded.client.infer(ORDINARY))
            await until(lambda: "ModelInfer" in guarded.upstream.calls)
            call.cancel()
            await until(lambda: guarded.upstream.cancelled == 1)
            device.set()

    asyncio.run(story())


@pytest.mark.parametrize("images", [ORDINARY, BRIGHT], ids=["passes", "rejected"])
def test_an_error_of_the_model_is_held_as_an_answer_is(bundle: Path, images: Any) -> None:
    async def story() -> None:
        async with guarding(bundle, **TOGETHER) as guarded:
            guarded.upstream.fail = (grpc.StatusCode.INTERNAL, "the model failed", ())
            answer = await guarded.client.infer(images)
            if images is ORDINARY:
                assert (answer.code, answer.details) == (grpc.StatusCode.INTERNAL, "the model failed")
                assert answer.trailing["guard-verdict"] == "pass"
            else:
                assert answer.code is grpc.StatusCode.PERMISSION_DENIED

    asyncio.run(story())


def test_a_model_that_keeps_a_state_is_asked_after_the_verdict(bundle: Path) -> None:
    message = infer_request(BRIGHT)
    message.parameters["sequence_id"].int64_param = 7

    async def story() -> None:
        async with guarding(bundle, **TOGETHER) as guarded:
            assert (await guarded.client.call("ModelInfer", message)).code is grpc.StatusCode.PERMISSION_DENIED
            assert "ModelInfer" not in guarded.upstream.calls
            assert guarded.events("reject")[0].get("model_asked") is None

    asyncio.run(story())


def test_what_cannot_be_read_is_never_forwarded(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, **TOGETHER) as guarded:
            assert (await guarded.client.infer(ORDINARY[:, :, :2])).code is grpc.StatusCode.INVALID_ARGUMENT
            assert "ModelInfer" not in guarded.upstream.calls

    asyncio.run(story())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"repair": "steps"}, "repair = 'steps'"),
        ({"allow_methods": ("ModelStreamInfer",)}, "allow_methods = 'ModelStreamInfer'"),
        ({"authz_listen": "127.0.0.1:0"}, "authz_listen"),
    ],
)
def test_it_is_refused_beside_what_it_cannot_hold_back(bundle: Path, settings: dict[str, Any], named: str) -> None:
    async def story() -> None:
        async with running(config_for(bundle, "127.0.0.1:1", **TOGETHER, **settings), log=Log("error")):
            pytest.fail("it started")

    with pytest.raises(ConfigError, match="forward = 'together'") as caught:
        asyncio.run(story())
    assert named in str(caught.value)
