"""Which headers travel on, on the bytes of the wire both ways, and what a client that retries makes of them."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from guard.runtime import Runtime
from guard.serve.grpc.metadata import downwards, end_to_end
from guard.serve.grpc.upstream import path
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.frames import Answer, Wire, grpc_headers, message, unary
from tests.serve.guarded import Answered, Client, Guarded, guarding, guarding_at, infer_request
from tests.serve.tap import tapped

ORDINARY = tiny_bundle.ordinary(1)
TRAVEL = {
    "authorization": "Bearer x",
    "traceparent": "00-ab-cd-01",
    "x-request-id": "7",
    "x-forwarded-for": "10.0.0.1",
    "x-token-bin": "AAE=",
    "grpc-status-details-bin": "AAE=",
}
STAY = {
    "te": "trailers",
    "connection": "close",
    "keep-alive": "timeout=5",
    "proxy-connection": "close",
    "proxy-authorization": "Basic x",
    "upgrade": "h2c",
    "accept-encoding": "gzip",
    "grpc-previous-rpc-attempts": "1",
    "grpc-retry-pushback-ms": "100",
    "grpc-foo": "1",
    "grpc-foo-bin": "AAE=",
    "grpc-tags-bin": "AAE=",
    "grpc-trace-bin": "AAE=",
    "guard-verdict": "pass",
}
RETRYING = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.05s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}


def raw(address: str, *headers: tuple[str, str]) -> Answer:
    """A ModelInfer whose headers are written by hand."""
    sent = [(name.encode(), value.encode()) for name, value in headers]
    return unary(address, path("ModelInfer").encode(), infer_request(ORDINARY).SerializeToString(), *sent)


def plain(name: str, value: bytes) -> bytes:
    """The bytes of a header, which for `-bin` are in base64 on the wire, or behind a zero as they are."""
    if not name.endswith("-bin"):
        return value
    return value[1:] if value[:1] == b"\x00" else base64.b64decode(value)


def test_what_is_for_one_hop_goes_no_further_up(bundle: Path) -> None:
    async def story() -> None:
        async with (
            listening(FakeUpstream()) as upstream,
            tapped(upstream) as (address, tap),
            guarding_at(bundle, address) as guarded,
        ):
            await guarded.until_ready()
            sent = ((name, value) for name, value in {**TRAVEL, **STAY}.items() if name != "te")  # every client has it
            answer = await asyncio.to_thread(raw, guarded.serving.address, *sent)
            assert answer.status == 0, answer.details
            (up,) = tap.asked("ModelInfer")
            gone = {name: up.get(name) for name in STAY if name in up}
            ours = {"te": b"trailers", "guard-verdict": b"pass"}  # the guard's own, on its own hop
            assert {name: value for name, value in gone.items() if name != "accept-encoding"} == ours
            assert {name: plain(name, up[name]) for name in TRAVEL} == {
                name: plain(name, value.encode()) for name, value in TRAVEL.items()
            }

    asyncio.run(story())


def test_what_is_for_one_hop_goes_no_further_down(bundle: Path) -> None:
    async def story() -> None:
        kept = {name: value for name, value in TRAVEL.items() if not name.endswith("-bin")}
        gone = {name: value for name, value in STAY.items() if not name.endswith("-bin") and name != "te"}
        trailing = (*kept.items(), *gone.items(), ("grpc-status-details-bin", b"\x00"))
        async with guarding(bundle, FakeUpstream(trailing=trailing)) as guarded:
            answer = await asyncio.to_thread(raw, guarded.serving.address)
            assert answer.status == 0, answer.details
            down = {name.decode(): value.decode() for name, value in answer.headers}
            assert {name: down[name] for name in kept} == kept
            assert down["grpc-status-details-bin"].rstrip("=") == "AA"
            assert down["guard-verdict"] == "pass"  # ours
            left = {name for name in gone if name in down}
            assert left == {"grpc-retry-pushback-ms", "guard-verdict"}  # the guard retries nothing: it is the client's

    asyncio.run(story())


def test_by_name() -> None:
    given = ((name, b"\x00" if name.endswith("-bin") else "1") for name in (*STAY, *TRAVEL, "x-ü", "grpc-status"))
    assert [name for name, _ in end_to_end(given)] == list(TRAVEL)
    assert end_to_end(None) == downwards(None) == ()
    assert downwards((("grpc-retry-pushback-ms", "5"),)) == (("grpc-retry-pushback-ms", "5"),)
    assert end_to_end((("x-a", "\n"), ("x-b-bin", "text"), ("x-c", b"bytes"))) == ()


async def retrying(guarded: Guarded) -> Answered:
    """A call by a client that tries four times."""
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(RETRYING)),
        ("grpc.enable_retries", 1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(guarded.serving.address, options=options) as channel:
        return await Client(channel).infer(ORDINARY)


@pytest.mark.parametrize("push_back", [None, "-1"])
def test_a_model_server_that_fails_is_asked_again_unless_it_minds(bundle: Path, push_back: str | None) -> None:
    async def story() -> None:
        trailing = () if push_back is None else (("grpc-retry-pushback-ms", push_back),)
        fake = FakeUpstream(fail=(grpc.StatusCode.UNAVAILABLE, "busy", trailing))
        async with guarding(bundle, fake) as guarded:
            assert (await retrying(guarded)).code is grpc.StatusCode.UNAVAILABLE
            assert len(fake.requests) == (4 if push_back is None else 1)
            assert not any("grpc-previous-rpc-attempts" in headers for headers in fake.headers)

    asyncio.run(story())


def test_what_fails_closed_is_not_sent_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that is out of order gets each request once, whatever its clients retry."""

    async def story() -> None:
        async with guarding(bundle) as guarded:

            def faulty(*given: Any, **options: Any) -> Any:
                raise RuntimeError("a fault of the device")

            monkeypatch.setattr(Runtime, "read", faulty)
            answer = await retrying(guarded)
            assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "UNCHECKED")
            assert answer.trailing["grpc-retry-pushback-ms"] == "-1"
            assert await guarded.metric("guard_requests_total", action="refused") == 1

    asyncio.run(story())


def test_what_another_replica_may_answer_may_be_sent_again(bundle: Path) -> None:
    """A client that does not heed GOAWAY is refused at the end of a drain, and may retry: nothing keeps it."""

    async def story() -> None:
        async with guarding(bundle, grace_s=10.0) as guarded:
            with Wire(guarded.serving.address) as heedless:
                await asyncio.to_thread(heedless.wait, lambda: heedless.greeted, time.monotonic() + 20)
                guarded.upstream.hang_infer = True
                held = asyncio.create_task(guarded.client.infer(ORDINARY))  # so that connections stay open meanwhile
                while "ModelInfer" not in guarded.upstream.calls:
                    await asyncio.sleep(0.01)
                draining = asyncio.create_task(guarded.serving.drain())
                while not (answer := await asyncio.to_thread(once_more, heedless)).done:
                    assert not draining.done()  # it was let in, and hangs as the first does
                assert answer.status == grpc.StatusCode.UNAVAILABLE.value[0]
                assert "another replica" in answer.details
                assert b"grpc-retry-pushback-ms" not in dict(answer.headers)
                assert await guarded.metric("guard_requests_total", action="refused") == 1
                guarded.upstream.hang_infer = False
                assert (await held).ok
                await draining

    asyncio.run(story())


def once_more(wire: Wire) -> Answer:
    """One more request on a connection, and what comes of it within a tenth of a second."""
    stream = wire.open(grpc_headers(path("ModelInfer").encode()))
    wire.body(stream, message(infer_request(ORDINARY).SerializeToString()))
    return wire.answer(stream, patience_s=0.1)
