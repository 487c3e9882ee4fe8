"""ModelStreamInfer, message by message: what passes, what is refused and how, in which order, and who is counted."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from guard.errors import NotAllowed
from guard.serve.grpc import door, passage, reply_order, streams
from guard.serve.grpc.door import MAX_CONNECTION_STREAMS, MAX_STREAMS
from guard.serve.grpc.upstream import UPSTREAM_ENDED, path, write_to
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import listening, received
from tests.serve.guarded import PATIENCE_S, Client, Guarded, calling, guarding, guarding_at, infer_request, until
from tests.serve.streaming_upstream import StreamingUpstream, wrapped

CLEAN = tiny_bundle.ordinary()
STRIPED = tiny_bundle.striped()


def message(images: Any, id_: str = "", **fields: Any) -> bytes:
    return bytes(infer_request(images, id=id_, **fields).SerializeToString())


def open_stream(client: Client, **options: Any) -> Any:
    start: Any = client.channel.stream_stream(path("ModelStreamInfer"))
    return start(**{"timeout": 20, **options})


async def all_replies(call: Any) -> list[bytes]:
    """The replies until the stream ends, however it ends."""
    found = []
    try:
        while (reply := await call.read()) is not grpc.aio.EOF:
            found.append(reply)
    except grpc.aio.AioRpcError:
        pass
    return found


async def streamed(client: Client, messages: Sequence[bytes], **options: Any) -> tuple[list[bytes], Any]:
    """Send all messages at once, and return all replies with the call that is over."""
    call = open_stream(client, **options)

    async def send() -> None:
        try:
            for one in messages:
                await write_to(call, one)  # or a status that comes meanwhile would be lost in the library
            await call.done_writing()
        except UPSTREAM_ENDED:
            return

    sending = asyncio.create_task(send())
    found = await all_replies(call)
    await sending
    return found, call


def unwrapped(reply: bytes) -> tuple[str, ModelInferResponse]:
    """Error and response of a ModelStreamInferResponse."""
    error, inner, at = "", b"", 0
    while at < len(reply):
        tag, at = reply[at], at + 1
        size = shift = 0
        while True:
            byte, at = reply[at], at + 1
            size, shift = size | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        if tag == 0x0A:
            error = reply[at : at + size].decode()
        else:
            assert tag == 0x12
            inner = reply[at : at + size]
        at += size
    return error, ModelInferResponse.FromString(inner)


async def ended(call: Any) -> tuple[str, str, dict[str, Any]]:
    code, trailing = await call.code(), dict(await call.trailing_metadata() or ())
    return code.name, await call.details() or "", trailing


def reason(trailing: dict[str, Any]) -> str:
    status, info = Status.FromString(trailing["grpc-status-details-bin"]), ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


@pytest.mark.parametrize("shape", ["wrapped", "bare"])
def test_what_passes_goes_up_and_down_as_it_came_and_in_order(bundle: Path, shape: Any) -> None:
    async def story() -> None:
        fake = StreamingUpstream(shape=shape, initial=(("first", "1"),), trailing=(("last", "2"), ("guard-x", "3")))
        async with guarding(bundle, fake) as guarded:
            sent = [message(tiny_bundle.ordinary(1 + i, seed=i), f"m{i}") for i in range(12)]
            metadata = (("key", "value"), ("guard-verdict", "pass"))
            found, call = await streamed(guarded.client, sent, metadata=metadata)
            assert fake.requests == sent
            responses = [fake.infer_response(one) for one in sent]
            assert found == [wrapped(one) if shape == "wrapped" else one for one in responses]
            code, _, trailing = await ended(call)
            assert (code, trailing["last"], trailing["guard-verdict"]) == ("OK", "2", "pass")
            assert "guard-x" not in trailing
            assert dict(await call.initial_metadata())["first"] == "1"
            up = fake.headers[-1]
            assert (up["key"], up["guard-id"]) == ("value", trailing["guard-id"])
            assert "guard-verdict" not in up  # no verdict on a stream is known when it begins
            assert await guarded.metric("guard_requests_total", action="pass") == 12
            assert await guarded.metric("guard_items_total", action="pass") == sum(range(1, 13))
            assert await guarded.metric("guard_calls_total", method="ModelStreamInfer", outcome="inspected") == 1
            assert await guarded.metric("guard_request_seconds_count") == 0
            assert await guarded.metric("guard_bytes_in_flight") == 0
            handled = {"grpc_method": "ModelStreamInfer", "grpc_code": "OK", "grpc_type": "bidi_stream"}
            assert await guarded.metric("grpc_server_handled_total", **handled) == 1

    asyncio.run(story())


MIXED = [
    message(CLEAN, "a"),
    message(STRIPED, "b"),
    message(CLEAN, "c"),
    b"\xff\xff",
    message(CLEAN, "e", name="other"),
    message(np.concatenate([CLEAN, STRIPED]), "f"),
    message(CLEAN, "g"),
]


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_a_wrapped_stream_answers_what_may_not_pass_in_its_place_and_goes_on(bundle: Path, delay_s: float) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton", delay_s=delay_s)
        async with guarding(bundle, fake) as guarded:
            found, call = await streamed(guarded.client, MIXED)
            assert fake.requests == [MIXED[0], MIXED[2], MIXED[6]]
            answers = [unwrapped(reply) for reply in found]
            assert [response.id for _, response in answers] == ["a", "b", "c", "", "e", "f", "g"]
            errors = [error for error, _ in answers]
            assert [bool(error) for error in errors] == [False, True, False, True, True, True, False]
            code, _, trailing = await ended(call)
            assert (code, trailing["guard-verdict"]) == ("OK", "reject")
            assert errors[1].startswith("refused by the guard: the input looks adversarial")
            assert all(f"guard-id {trailing['guard-id']}, message {i + 1}" in errors[i] for i in (1, 3, 4, 5))
            assert not any(name in reply for reply in found for name in (b"guard-verdict", b"p_value"))
            for action, count in (("pass", 3), ("reject", 2), ("refused", 2)):
                assert await guarded.metric("guard_requests_total", action=action) == count
            assert await guarded.metric("guard_refused_total", reason="unknown_model") == 1
            lines = guarded.events("reject")
            assert [(line["message"], line["request_id"]) for line in lines] == [(2, "b"), (6, "f")]
            assert {line["id"] for line in lines} == {trailing["guard-id"]}

    asyncio.run(story())


@pytest.mark.parametrize(
    ("settings", "shape", "server", "metadata"),
    [
        ({}, "bare", "mlserver", ()),
        ({"stream_replies": "bare"}, "bare", "fake", ()),
        ({}, "bare", "fake", ()),
        ({}, "wrapped", "triton", (("triton_grpc_error", "true"),)),
        ({"stream_replies": "wrapped"}, "wrapped", "fake", (("triton_grpc_error", "true"),)),
    ],
    ids=["by name", "by setting", "by its replies", "as the client asks", "as the client asks, set"],
)
def test_elsewhere_the_stream_ends_with_the_status_after_what_had_passed_is_answered(
    bundle: Path, settings: dict[str, Any], shape: Any, server: str, metadata: Any
) -> None:
    async def story() -> None:
        fake = StreamingUpstream(shape=shape, server=server, delay_s=0.02)
        async with guarding(bundle, fake, **settings) as guarded:
            sent = [message(CLEAN, "a"), message(CLEAN, "b"), message(STRIPED, "c"), message(CLEAN, "d")]
            began = time.monotonic()
            found, call = await streamed(guarded.client, sent, metadata=metadata)
            assert time.monotonic() - began < reply_order.PATIENCE_S / 2
            assert len(found) == 2
            code, details, trailing = await ended(call)
            assert (code, reason(trailing), trailing["guard-verdict"]) == ("PERMISSION_DENIED", "REJECTED", "reject")
            assert f"guard-id {trailing['guard-id']}, message 3" in details
            assert fake.requests == sent[:2]
            assert await guarded.metric("guard_requests_total", action="reject") == 1
            assert await guarded.metric("guard_calls_total", method="ModelStreamInfer", outcome="refused") == 1
            await until(lambda: fake.open_streams == 0)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("server", "settings", "in_stream"),
    [
        ("fake", {}, False),
        ("mlserver", {}, False),
        ("triton", {}, True),
        ("OpenVINO Model Server", {}, True),
        ("fake", {"stream_replies": "wrapped"}, True),
        ("mlserver", {"stream_replies": "wrapped"}, True),
    ],
)
def test_before_the_first_reply_the_servers_name_tells_the_shape(
    bundle: Path, server: str, settings: dict[str, Any], *, in_stream: bool
) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server=server)
        async with guarding(bundle, fake, **settings) as guarded:
            found, call = await streamed(guarded.client, [message(STRIPED, "b")])
            assert ((await ended(call))[0] == "OK") is in_stream
            assert [unwrapped(reply)[1].id for reply in found] == (["b"] if in_stream else [])
            assert fake.requests == []

    asyncio.run(story())


def test_what_one_stream_shows_holds_for_the_next(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="fake")
        async with guarding(bundle, fake) as guarded:
            await streamed(guarded.client, [message(CLEAN)])
            found, call = await streamed(guarded.client, [message(STRIPED, "b"), message(CLEAN, "c")])
            assert (await ended(call))[0] == "OK"
            assert [unwrapped(reply)[1].id for reply in found] == ["b", "c"]
            fake.shape = "bare"  # another model server behind the same name
            await streamed(guarded.client, [message(CLEAN)])
            _, call = await streamed(guarded.client, [message(STRIPED, "b")])
            assert (await ended(call))[0] == "PERMISSION_DENIED"

    asyncio.run(story())


def test_a_refusal_waits_for_no_reply_that_never_comes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_order, "PATIENCE_S", 0.2)

    async def story() -> None:
        fake = StreamingUpstream(server="triton", replies=0)
        async with guarding(bundle, fake) as guarded:
            call = open_stream(guarded.client)
            for one in (message(CLEAN, "a"), message(STRIPED, "b")):
                await call.write(one)
            assert unwrapped(await call.read())[1].id == "b"
            await call.write(message(STRIPED, "c"))
            await call.done_writing()
            assert [unwrapped(reply)[1].id for reply in await all_replies(call)] == ["c"]

    asyncio.run(story())


def test_several_replies_to_a_message_pass(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton", replies=3)
        async with guarding(bundle, fake) as guarded:
            sent = [message(CLEAN, "a"), message(STRIPED, "b"), message(CLEAN, "c")]
            found, _ = await streamed(guarded.client, sent)
            ids = [unwrapped(reply)[1].id for reply in found]
            assert sorted(ids) == ["a"] * 3 + ["b"] + ["c"] * 3
            assert [one for one in ids if one != "b"] == ["a"] * 3 + ["c"] * 3
            assert ids.index("b") > ids.index("a")

    asyncio.run(story())


def test_a_lockstep_client_gets_each_answer_before_it_sends_more(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        async with guarding(bundle, fake) as guarded:
            call = open_stream(guarded.client, timeout=None)
            for number, images in enumerate([CLEAN, STRIPED, CLEAN, STRIPED, STRIPED, CLEAN]):
                await call.write(message(images, str(number)))
                error, response = unwrapped(await asyncio.wait_for(call.read(), 2.0))
                assert (bool(error), response.id) == (images is STRIPED, str(number))
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

    asyncio.run(story())


def test_a_suspicious_message_is_repaired_alone(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        settings = {"repair": "steps", "reject_rate": 0.001, "flag_rate": 0.02, "tell_flags": True}
        async with guarding(bundle, fake, **settings) as guarded:
            suspicious = next(one for one in candidates() if guarded_repairs(bundle, one))
            sent = [message(CLEAN, "a"), message(suspicious, "b"), message(CLEAN, "c")]
            _, call = await streamed(guarded.client, sent)
            assert [fake.requests[0], fake.requests[2]] == [sent[0], sent[2]]
            assert fake.requests[1] != sent[1]
            assert not np.array_equal(received(fake.requests[1]), suspicious)
            assert (await ended(call))[2]["guard-verdict"] == "repair"
            assert await guarded.metric("guard_requests_total", action="repair") == 1

    asyncio.run(story())


def candidates() -> list[Any]:
    return [tiny_bundle.clean(1, seed=seed) for seed in range(400)]


def guarded_repairs(bundle: Path, images: Any) -> bool:
    """Whether an item lies between the two rates above, and its repaired answer is stable."""
    from guard.bundle import Bundle
    from guard.runtime import Runtime

    runtime = Runtime.open(Bundle.open(bundle), threads=1)
    p_value = float(runtime.read(images).p_value[0])
    return 0.001 < p_value <= 0.02 and bool(runtime.repair(images, "steps").stable.all())


@pytest.mark.parametrize(
    ("mode", "sent", "verdict", "action"),
    [
        ("flag", STRIPED, "pass", "would_reject"),
        ("shadow", STRIPED, "pass", "would_reject"),
        ("shadow", None, "unchecked", "unchecked"),
        ("off", STRIPED, "unchecked", "unchecked"),
        ("off", None, "unchecked", "unchecked"),
    ],
)
def test_the_mode_decides_as_for_a_request(bundle: Path, mode: str, sent: Any, verdict: str, action: str) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton", replies=0)
        async with guarding(bundle, fake, mode=mode) as guarded:
            bodies = [b"\xff\xff" if sent is None else message(sent)]
            _, call = await streamed(guarded.client, bodies)
            code, _, trailing = await ended(call)
            assert (code, trailing["guard-verdict"]) == ("OK", verdict)
            assert fake.requests == bodies
            assert await guarded.metric("guard_requests_total", action=action) == 1

    asyncio.run(story())


@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_on_failure_decides_as_for_a_request(bundle: Path, on_failure: str) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        async with guarding(bundle, fake, on_failure=on_failure, inspect_timeout_s=1e-5) as guarded:
            found, call = await streamed(guarded.client, [message(CLEAN, "a"), message(CLEAN, "b")])
            errors = [unwrapped(reply)[0] for reply in found]
            passes = on_failure == "open"
            assert [not error for error in errors] == [passes] * 2
            verdict = (await ended(call))[2].get("guard-verdict")
            assert verdict == ("unchecked" if passes else None)
            assert await guarded.metric("guard_requests_total", action="unchecked" if passes else "refused") == 2

    asyncio.run(story())


def test_models_that_the_operator_lets_pass_do_so_within_a_stream(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        async with guarding(bundle, fake, allow_models=("other",)) as guarded:
            found, call = await streamed(guarded.client, [message(CLEAN), message(STRIPED, name="other")])
            assert [unwrapped(reply)[0] for reply in found] == ["", ""]
            assert (await ended(call))[2]["guard-verdict"] == "unchecked"

    asyncio.run(story())


def test_an_opened_stream_is_passed_by_as_before(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        async with guarding(bundle, fake, allow_methods=("ModelStreamInfer",)) as guarded:
            found, call = await streamed(guarded.client, [message(STRIPED, "a")])
            assert [unwrapped(reply)[0] for reply in found] == [""]
            assert (await ended(call))[2]["guard-verdict"] == "unchecked"
            assert await guarded.metric("guard_requests_total") == 0

    asyncio.run(story())


@pytest.mark.parametrize(
    ("code", "wanted"),
    [(grpc.StatusCode.OK, "OK"), (grpc.StatusCode.INTERNAL, "INTERNAL"), (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")],
)
def test_a_stream_ends_as_the_upstream_ends_it(bundle: Path, code: grpc.StatusCode, wanted: str) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton", stop_after=2, stop_code=code, trailing=(("last", "2"),))
        async with guarding(bundle, fake) as guarded:
            call = open_stream(guarded.client)
            for number in range(2):
                await call.write(message(CLEAN, str(number)))
            assert len(await all_replies(call)) == 2
            name, details, trailing = await ended(call)
            assert (name, trailing["last"]) == (wanted, "2")
            assert details == ("" if wanted == "OK" else "the model has had enough")
            assert await guarded.metric("guard_requests_total", action="pass") == 2
            handled = {"grpc_method": "ModelStreamInfer", "grpc_code": wanted}
            assert await guarded.metric("grpc_server_handled_total", **handled) == 1

    asyncio.run(story())


def test_a_server_without_streams_says_so(bundle: Path) -> None:
    async def story() -> None:
        class Without(StreamingUpstream):
            def service(self, details: Any) -> Any:
                return None if details.method.endswith("ModelStreamInfer") else super().service(details)

        async with guarding(bundle, Without()) as guarded:
            for _ in range(10):  # the status may come while the message is on its way, or before
                calls = await asyncio.gather(*(streamed(guarded.client, [message(CLEAN)]) for _ in range(8)))
                assert {(await ended(call))[0] for _, call in calls} == {"UNIMPLEMENTED"}

    asyncio.run(story())


def test_a_server_that_is_away_is_told_alike_however_it_is_asked(bundle: Path) -> None:
    """Its address is the operator's, and no client's."""

    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        server = listening(fake)
        address = await server.__aenter__()
        async with guarding_at(bundle, address, fake, allow_methods=("TraceSetting", "ModelConfig")) as guarded:
            await guarded.until_ready()
            body = message(CLEAN)
            assert (await guarded.client.call("ModelInfer", body)).ok
            await server.__aexit__(None, None, None)
            await until(lambda: not guarded.serving.upstream_channels.current.connected)
            ends = {}
            for method in ("ModelInfer", "ModelMetadata", "TraceSetting", "ModelConfig"):
                answer = await guarded.client.call(method, body)
                ends[method] = (answer.code.name, answer.details, answer.reason)
            _, call = await streamed(guarded.client, [body])
            code, details, trailing = await ended(call)
            ends["ModelStreamInfer"] = (code, details, reason(trailing))
            wanted = "the model server behind the guard cannot be reached; nothing answered this request"
            assert ends == dict.fromkeys(ends, ("UNAVAILABLE", wanted, "UPSTREAM_DOWN"))

    asyncio.run(story())


async def outcomes(guarded: Guarded) -> dict[str, float]:
    """How streams have ended so far."""
    ends = ("inspected", "refused", "failed", "expired", "cancelled")
    return {end: await guarded.metric("guard_calls_total", method="ModelStreamInfer", outcome=end) for end in ends}


@pytest.mark.parametrize("how", ["channel closed", "call cancelled", "deadline"])
@pytest.mark.parametrize("when", ["silent", "unanswered", "flooded"])
def test_a_client_that_leaves_ends_the_upstreams_stream(bundle: Path, how: str, when: str) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton", delay_s=60.0 if when == "unanswered" else 0.0)
        fake.replies = 10_000 if when == "flooded" else 1
        async with guarding(bundle, fake) as guarded:
            async with calling(guarded.serving.address) as client:
                call = open_stream(client, timeout=2.0 if how == "deadline" else None)
                if when != "silent":
                    await call.write(message(CLEAN))
                await until(lambda: fake.open_streams == 1)
                if how == "call cancelled":
                    call.cancel()
                if how == "deadline":
                    await until(lambda: fake.open_streams == 0)
            await until(lambda: fake.open_streams == 0)
            end = "expired" if how == "deadline" else "cancelled"
            deadline = time.monotonic() + PATIENCE_S  # the guard counts once the upstream's stream has ended
            while await guarded.metric("guard_calls_total", method="ModelStreamInfer", outcome=end) != 1:
                assert time.monotonic() < deadline, await outcomes(guarded)
            assert await guarded.metric("guard_requests_total", action="pass") == (when != "silent")

    asyncio.run(story())


def test_the_deadline_goes_up_and_none_is_invented(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream()
        async with guarding(bundle, fake) as guarded:
            await streamed(guarded.client, [message(CLEAN)], timeout=15)
            await streamed(guarded.client, [message(CLEAN)], timeout=None)
            with_one, without = fake.remaining[-2:]
            assert with_one is not None
            assert 10 < with_one < 15.5
            assert without is None or without > 1e6

    asyncio.run(story())


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_unpacked_and_inspected(bundle: Path, compression: grpc.Compression) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        async with guarding(bundle, fake) as guarded:
            large = np.repeat(CLEAN, 100, axis=0)
            bad = np.concatenate([large, STRIPED])
            found, _ = await streamed(guarded.client, [message(large, "a"), message(bad, "b")], compression=compression)
            assert fake.requests == [message(large, "a")]
            assert [bool(unwrapped(reply)[0]) for reply in found] == [False, True]

    asyncio.run(story())


def test_a_bomb_is_refused_and_a_message_beyond_the_limit_ends_its_stream_alone(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        async with guarding(bundle, fake, max_message_bytes=32 * 1024) as guarded:
            bomb = message(np.zeros((4000, *tiny_bundle.SHAPE), np.float32))
            found, call = await streamed(
                guarded.client, [message(CLEAN), bomb, message(CLEAN)], compression=grpc.Compression.Gzip
            )
            assert [bool(unwrapped(reply)[0]) for reply in found] == [False, True, False]
            assert "unpacks to more than max_message_bytes" in unwrapped(found[1])[0]
            beside = open_stream(guarded.client)
            await beside.write(message(CLEAN))
            await beside.read()
            _, call = await streamed(guarded.client, [message(CLEAN), bomb])
            assert (await ended(call))[0] != "OK"
            await beside.write(message(CLEAN))
            assert not unwrapped(await beside.read())[0]
            beside.cancel()

    asyncio.run(story())


class Unpacked(bytes):
    """A message that was unpacked, and is counted as long as it lives."""

    live_bytes, most_bytes = 0, 0
    lock = threading.Lock()  # messages are unpacked on several threads

    def __init__(self, _: bytes) -> None:
        with Unpacked.lock:
            Unpacked.live_bytes += len(self)
            Unpacked.most_bytes = max(Unpacked.most_bytes, Unpacked.live_bytes)

    def __del__(self) -> None:
        with Unpacked.lock:
            Unpacked.live_bytes -= len(self)


@pytest.mark.parametrize("method", ["ModelStreamInfer", "TraceSetting"], ids=["inspected", "opened"])
def test_what_messages_unpack_to_takes_part_in_the_memory_for_all(
    bundle: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few KB on the wire hold as much as they unpack to, whatever door they come through."""
    plain = door.unpacked
    monkeypatch.setattr(Unpacked, "most_bytes", 0)
    monkeypatch.setattr(door, "unpacked", lambda came, largest: Unpacked(plain(came, largest)))

    async def refused(*_: Any) -> bytes:
        await asyncio.sleep(0.1)
        raise NotAllowed("it is held for a while, and not passed")

    async def written(*_: Any) -> None:
        await asyncio.sleep(0.1)

    monkeypatch.setattr(streams.StreamPassage, "decide", refused)
    monkeypatch.setattr(passage, "write_to", written)
    limit, streams_at_once = 4 * 2**20, 24

    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        options = {"max_message_bytes": 2**20, "max_bytes_in_flight": limit, "allow_methods": ("TraceSetting",)}
        async with guarding(bundle, fake, **options) as guarded:
            bomb, too_large = (
                gzip.compress(message(np.zeros((items, *tiny_bundle.SHAPE), np.float32))) for items in (15_000, 17_000)
            )
            start: Any = guarded.client.channel.stream_stream(path(method))
            calls = [start(timeout=20) for _ in range(streams_at_once)]
            for number in range(2):
                calls = [call for call in calls if not call.done()]  # an opened one ends where there is no room
                await asyncio.gather(*(call.write(bomb if number == 0 else too_large) for call in calls))
                assert await guarded.metric("guard_bytes_in_flight") <= limit
                await asyncio.sleep(0.3)
            await until(lambda: not Unpacked.live_bytes)  # though the streams stay open
            reading = asyncio.gather(*(all_replies(call) for call in calls))
            await asyncio.gather(*(call.done_writing() for call in calls if not call.done()))
            while not reading.done():
                assert await guarded.metric("guard_bytes_in_flight") <= limit
            await reading
            assert 900_000 < Unpacked.most_bytes <= limit

    asyncio.run(story())


def test_parameters_of_sequences_and_decoupled_models_pass(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        async with guarding(bundle, fake) as guarded:
            request = infer_request(CLEAN, id="a")
            request.parameters["sequence_id"].int64_param = 7
            request.parameters["sequence_start"].bool_param = True
            request.parameters["triton_enable_empty_final_response"].bool_param = True
            sent = request.SerializeToString()
            await streamed(guarded.client, [sent])
            assert fake.requests == [sent]

    asyncio.run(story())


def test_a_model_that_reads_nothing_holds_its_client_back(bundle: Path) -> None:
    """What the client floods stays with the client: the guard holds one message of a stream at a time."""

    async def story() -> None:
        fake = StreamingUpstream(server="triton", paused=asyncio.Event(), replies=0)
        small = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))
        async with listening(fake, options=small) as address, guarding_at(bundle, address, fake) as guarded:
            await guarded.until_ready()
            body = message(np.repeat(CLEAN, 200, axis=0))
            call = open_stream(guarded.client, timeout=None)
            sent = 0

            async def flood() -> None:
                nonlocal sent
                for _ in range(150):
                    await call.write(body)
                    sent += 1

            flooding = asyncio.create_task(flood())
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.3)
            assert sent < 100
            assert await guarded.metric("guard_bytes_in_flight") <= 2 * len(body)
            assert (await guarded.client.infer(CLEAN)).ok  # beside it
            assert fake.paused is not None
            fake.paused.set()
            await flooding
            await call.done_writing()
            await all_replies(call)
            assert len(fake.requests) == 150 + 1

    asyncio.run(story())


def test_streams_are_bounded_by_number_and_by_connection(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        async with guarding(bundle, fake) as guarded, calling(guarded.serving.address) as other:
            open_ones = []
            for client in (guarded.client, other):
                for _ in range(MAX_STREAMS // 2):
                    call = open_stream(client)
                    await call.write(message(CLEAN))
                    assert not unwrapped(await call.read())[0]
                    open_ones.append(call)
            assert MAX_CONNECTION_STREAMS == MAX_STREAMS // 2
            _, refused = await streamed(guarded.client, [message(CLEAN)])
            code, details, trailing = await ended(refused)
            assert (code, reason(trailing)) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
            assert "64 streams are open already" in details
            open_ones.pop().cancel()
            await until(lambda: fake.open_streams == MAX_STREAMS - 1)
            _, refused = await streamed(guarded.client, [message(CLEAN)])
            assert "32 streams are open on this connection" in (await ended(refused))[1]
            found, _ = await streamed(other, [message(CLEAN)])
            assert len(found) == 1
            for call in open_ones:
                call.cancel()

    asyncio.run(story())


@pytest.mark.alone
def test_flooding_streams_do_not_starve_other_clients(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton", replies=0)
        async with guarding(bundle, fake) as guarded, calling(guarded.serving.address) as other:
            body = message(CLEAN)

            async def flood() -> None:
                call = open_stream(guarded.client, timeout=None)
                try:
                    while True:
                        await call.write(body)
                finally:
                    call.cancel()

            floods = [asyncio.create_task(flood()) for _ in range(16)]
            await until(lambda: len(fake.requests) > 200)
            took = []
            for _ in range(30):
                began = time.monotonic()
                assert (await other.infer(CLEAN, timeout_s=2 * PATIENCE_S)).ok
                took.append(time.monotonic() - began)
            for task in floods:
                task.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
            assert sorted(took)[15] < 1.0  # a busy machine holds some up

    asyncio.run(story())


def test_every_message_is_counted_once_whatever_becomes_of_its_stream(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton", delay_s=0.005)
        async with guarding(bundle, fake) as guarded:

            async def one(number: int) -> None:
                call = open_stream(guarded.client, timeout=0.05 + 0.02 * number)
                try:
                    for place in range(20):
                        await call.write(message(STRIPED if place % 3 == 2 else CLEAN, str(place)))
                    await call.done_writing()
                    if number % 2:
                        call.cancel()
                    await all_replies(call)
                except (*UPSTREAM_ENDED, asyncio.CancelledError):
                    return

            await asyncio.gather(*(one(number) for number in range(20)))
            await until(lambda: fake.open_streams == 0)
            passed = await guarded.metric("guard_requests_total", action="pass")
            failed = await guarded.metric("guard_requests_total", action="failed")
            assert len(fake.requests) <= passed + failed
            assert await guarded.metric("guard_requests_total", action="reject") == len(guarded.events("reject"))
            assert await guarded.metric("guard_bytes_in_flight") == 0

    asyncio.run(story())


def test_no_bytes_that_a_client_sends_stop_the_stream_of_another(bundle: Path) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton")
        async with guarding(bundle, fake) as guarded:
            beside = open_stream(guarded.client)
            generator = np.random.default_rng(0)
            whole = message(CLEAN, "x")
            for _ in range(60):
                odd = bytearray(whole)
                for place in generator.integers(0, len(odd), 3):
                    odd[place] = int(generator.integers(256))
                found, _ = await streamed(guarded.client, [bytes(odd)])
                assert len(found) <= 1
            await beside.write(whole)
            assert not unwrapped(await beside.read())[0]
            beside.cancel()

    asyncio.run(story())


def test_a_guard_that_drains_takes_no_new_stream(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, StreamingUpstream(server="triton"), grace_s=5.0) as guarded:
            beside = open_stream(guarded.client)
            await beside.write(message(CLEAN))
            await beside.read()
            draining = asyncio.create_task(guarded.serving.drain())
            await asyncio.sleep(0.3)
            _, call = await streamed(guarded.client, [message(CLEAN)])
            assert (await ended(call))[0] == "UNAVAILABLE"
            await beside.done_writing()
            assert await beside.read() is grpc.aio.EOF  # what was under way ends by itself
            await draining

    asyncio.run(story())
