"""One message, one client, one fault does not stop the others: real processes, hostile bytes, a bystander."""

from __future__ import annotations

import asyncio
import gzip
import io
import math
import signal
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from guard.serve.grpc.acceptor import is_known
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import ServerLiveResponse
from guard.serve.log import Log
from guard.serve.server import running
from tests.bench.sidecar import resident_mib
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.frames import Wire, data, grpc_headers, headers, message, reset, unary
from tests.serve.grpc.test_bypass import field
from tests.serve.guarded import (
    PATIENCE_S,
    Client,
    calling,
    config_for,
    free_port,
    guarding,
    infer_request,
    metric_of,
    until,
)
from tests.serve.hpack import literal
from tests.serve.processes import guard_process, model_process

measured = pytest.mark.alone  # waits or memory are judged

ORDINARY = tiny_bundle.ordinary(1)
INFER, LIVE = path("ModelInfer").encode(), path("ServerLive").encode()
LATE_S = 1.5  # a deadline that passes, after the call has come to the model server
REFUSED_STREAM = 7  # RFC 9113, section 7
PATIENT_S = 1.0  # what a bystander may wait, at the best of TRIES: a busy machine holds him up now and then
TRIES = 3
CLEAN = infer_request(ORDINARY).SerializeToString()


@contextmanager
def bystander(address: str) -> Iterator[list[float]]:
    """Another client, with a connection of its own, asking whether the server lives; how long each answer took."""
    waits: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            live = channel.unary_unary(path("ServerLive"))
            while not over.wait(0.005):
                began = time.monotonic()
                assert ServerLiveResponse.FromString(live(b"", timeout=60)).live
                waits.append(time.monotonic() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()


def shortest_wait_s(address: str, disturb: Callable[[], None]) -> float:
    """How long a bystander waits at most, in the best of a few tries: what holds everybody up does so in each."""
    found = math.inf
    for _ in range(TRIES):
        with bystander(address) as waits:
            disturb()
        if (found := min(found, max(waits))) < PATIENT_S:
            break
    return found


FLOODS = {
    "outputs": field(6, b"") * 2_000_000,
    "inputs in inputs": field(5, field(5, b"") * 2_000_000),
    "parameters": field(4, b"") * 2_000_000,
    "unknown fields": field(99, b"") * 1_000_000,
}


@measured
@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_of_a_million_parts_holds_nobody_up(
    bundle: Path, tmp_path: Path, compression: grpc.Compression | None
) -> None:
    with model_process(tmp_path) as model:
        upstream = model.until_event("listening")["inference"]
        with guard_process(config_for(bundle, upstream, max_message_bytes=16 * 2**20)) as guard:
            address = guard.until_event("listening")["inference"]
            guard.until_event("ready")

            def flood() -> None:
                with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
                    infer: Any = channel.unary_unary(path("ModelInfer"))
                    for name, parts in FLOODS.items():
                        with pytest.raises(grpc.RpcError) as caught:
                            infer(CLEAN + parts, timeout=60, compression=compression)
                        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
                    infer(CLEAN, timeout=60, compression=compression)

            assert shortest_wait_s(address, flood) < PATIENT_S


@pytest.mark.parametrize("by_itself", [True, False], ids=["ours", "the library's"])
def test_a_path_that_is_no_text_closes_nothing(bundle: Path, *, by_itself: bool) -> None:
    """Where the library accepts, its loop ends: then the listener is opened again, and calls in flight finish."""

    async def story() -> None:
        assert is_known()
        fake = FakeUpstream()
        async with guarding(bundle, fake) as guarded:
            listener = guarded.serving.inference
            if not by_itself:
                await listener.stop()
                listener.stopped, listener.accepts_by_itself = False, False
                listener.address = f"127.0.0.1:{listener.port}"
                await listener.open()
            fake.hang_infer = True
            async with calling(guarded.serving.address) as client, calling(guarded.serving.address) as other:
                in_flight = asyncio.create_task(client.infer(ORDINARY))
                await until(lambda: "ModelInfer" in fake.calls)
                for number, hostile in enumerate((b"/x/\xff", b"/\xc3", INFER + b"\xfe"), start=1):
                    await asyncio.to_thread(unary, guarded.serving.address, hostile, b"", patience_s=0.2)
                    if not by_itself:
                        await until(lambda number=number: listener.reopened == number)
                times = 0 if by_itself else 3
                assert listener.reopened == times
                assert await guarded.metric("guard_listener_reopened_total", listener="inference") == times
                assert guarded.serving.readiness.part("listener") is None
                assert (await answered(other, "ServerLive")).ok
                fake.hang_infer = False
                assert (await in_flight).ok
                await guarded.until_ready()

    asyncio.run(story())


async def answered(client: Client, method: str) -> Any:
    """The first answer; a connection to a listener that was replaced may still have to be made anew."""
    for _ in range(50):
        answer = await client.call(method, b"", timeout_s=1.0)
        if answer.code is not grpc.StatusCode.UNAVAILABLE:
            return answer
        await asyncio.sleep(0.02)
    return answer


def test_the_end_of_a_drain_is_nobodys_own_act(bundle: Path, tmp_path: Path) -> None:
    """Whoever meets it is answered, or told UNAVAILABLE, which clients retry; never CANCELLED."""

    async def story() -> Counter[str]:
        ended: Counter[str] = Counter()
        with model_process(tmp_path) as model:
            upstream = model.until_event("listening")["inference"]
            with guard_process(config_for(bundle, upstream, drain_s=0.2)) as guard:
                address = guard.until_event("listening")["inference"]
                guard.until_event("ready")
                stop = time.monotonic() + 60

                async def hammer(client: Client) -> None:
                    while time.monotonic() < stop and guard.popen.poll() is None:
                        answer = await client.infer(ORDINARY, timeout_s=10)
                        ended[answer.code.name] += 1
                        if not answer.ok:
                            await asyncio.sleep(0.005)

                async with calling(address) as one, calling(address) as two:
                    clients = [asyncio.create_task(hammer(client)) for client in (one, two) for _ in range(16)]
                    await until(lambda: ended["OK"] > 100)
                    guard.popen.send_signal(signal.SIGTERM)
                    await asyncio.gather(*clients)
        return ended

    ended = asyncio.run(story())
    assert ended["OK"] > 100
    assert set(ended) <= {"OK", "UNAVAILABLE"}, ended


FAR = [b"2562047H", b"99999999H", b"99999999M", b"99999999S", b"31536001S", b"100000000u", b"5S", b"1H"]


@pytest.mark.parametrize("timeout", FAR)
def test_a_far_deadline_is_as_good_as_none(bundle: Path, timeout: bytes) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            answer = await asyncio.to_thread(
                unary, guarded.serving.address, INFER, CLEAN, (b"grpc-timeout", timeout), patience_s=20
            )
            assert answer.status == 0, answer.details

    asyncio.run(story())


@pytest.mark.parametrize("timeout", [b"0S", b"1n", b"0n"])
def test_a_deadline_that_has_passed_is_told_as_such(bundle: Path, timeout: bytes) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            answer = await asyncio.to_thread(
                unary, guarded.serving.address, INFER, CLEAN, (b"grpc-timeout", timeout), patience_s=20
            )
            assert answer.status in (4, None)  # or the call is gone before it has a status
            assert guarded.upstream.requests == []
            assert (await guarded.client.infer(ORDINARY)).ok

    asyncio.run(story())


ODD_HEADERS = {
    "latin-1": (b"x-name", b"caf\xe9"),
    "UTF-8": (b"x-name", "café".encode()),
    "every byte": (b"x-name", bytes(range(1, 256)).replace(b"\n", b"").replace(b"\r", b"")),
    "a tab": (b"x-name", b"a\tb"),
    "delete": (b"x-name", b"\x7f"),
    "empty": (b"x-name", b""),
    "spaces": (b"x-name", b"  a  "),
    "long": (b"x-name", b"a" * 4000),
    "printable": (b"x-name", bytes(range(0x20, 0x7F))),
    "binary": (b"x-name-bin", b"AAEC_w"),
    "empty binary": (b"x-name-bin", b""),
    "twice": (b"x-a", b"1, 2"),
    "dots": (b"a.b_c-d", b"1"),
    "reserved": (b"grpc-whatever", b"1"),
    "ours": (b"guard-verdict", b"pass"),
    "trace": (b"traceparent", b"00-ab-cd-01"),
}


@pytest.mark.parametrize("name", ODD_HEADERS)
def test_metadata_fares_as_in_a_direct_call(bundle: Path, name: str) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded, listening(FakeUpstream()) as direct:
            through = await asyncio.to_thread(unary, guarded.serving.address, INFER, CLEAN, ODD_HEADERS[name])
            straight = await asyncio.to_thread(unary, direct, INFER, CLEAN, ODD_HEADERS[name])
            assert through.status == straight.status, (through.details, straight.details)
            ended = {True: "pass", False: None}[through.status == 0]
            if ended:
                assert await guarded.metric("guard_requests_total", action=ended) == 1

    asyncio.run(story())


def test_text_that_may_travel_travels(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            sent = ((b"x-all", bytes(range(0x20, 0x7F)).strip()), (b"x-bad", b"\xff"), (b"x-raw-bin", b"AAEC/w"))
            answer = await asyncio.to_thread(unary, guarded.serving.address, INFER, CLEAN, *sent)
            assert answer.status == 0
            up = guarded.upstream.headers[0]
            assert up["x-all"] == bytes(range(0x20, 0x7F)).strip().decode()
            assert up["x-raw-bin"] == b"\x00\x01\x02\xff"
            assert "x-bad" not in up

    asyncio.run(story())


class Flooding(FakeUpstream):
    """An upstream whose stream never ends by itself."""

    open_streams = 0

    async def stream(self, requests: Any, context: Any) -> Any:
        self.open_streams += 1
        try:
            while True:
                yield bytes(16384)
        finally:
            self.open_streams -= 1


@pytest.mark.parametrize("how", ["channel closed", "call cancelled", "deadline"])
def test_a_client_that_leaves_an_opened_stream_ends_the_upstreams(bundle: Path, how: str) -> None:
    async def story() -> None:
        fake = Flooding()
        async with guarding(bundle, fake, allow_methods=("ModelStreamInfer",)) as guarded:
            for _ in range(4):
                async with calling(guarded.serving.address) as client:
                    start: Any = client.channel.stream_stream(path("ModelStreamInfer"))
                    call = start(iter([b"x"]), timeout=0.5 if how == "deadline" else None)
                    await call.read()  # one answer and no more: the guard's writes pile up
                    await until(lambda: fake.open_streams == 1)
                    if how == "call cancelled":
                        call.cancel()
                    if how != "channel closed":
                        await until(lambda: fake.open_streams == 0)
                await until(lambda: fake.open_streams == 0, lambda: f"{fake.open_streams} are still open")
            assert guarded.serving.inference.server is not None

    asyncio.run(story())


def test_a_call_that_never_gets_its_message_ends(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, read_timeout_s=0.3) as guarded:

            def half() -> int | None:
                with Wire(guarded.serving.address) as wire:
                    stream = wire.open(grpc_headers(INFER))
                    wire.body(stream, message(CLEAN)[:-5], end=False)
                    return wire.answer(stream, patience_s=PATIENCE_S).status  # None: it has not ended by then

            assert await asyncio.gather(*(asyncio.to_thread(half) for _ in range(8))) == [4] * 8
            assert await guarded.metric("guard_requests_total", action="expired") == 8
            assert await guarded.metric("guard_bytes_in_flight") == 0
            assert (await guarded.client.infer(ORDINARY)).ok

    asyncio.run(story())


def test_calls_without_a_message_do_not_make_the_guard_seem_busy(bundle: Path) -> None:
    """Nor do those that are taken back: how long a call takes is judged by calls that are inspected."""

    async def story() -> None:
        async with guarding(bundle) as guarded:

            def hold(held: threading.Event, over: threading.Event) -> None:
                with Wire(guarded.serving.address) as wire:
                    for _ in range(64):
                        wire.body(wire.open(grpc_headers(INFER)), message(CLEAN)[:-1], end=False)
                    for _ in range(200):
                        wire.send(reset(wire.open(grpc_headers(INFER))))
                    held.set()
                    over.wait(20)

            held, over = threading.Event(), threading.Event()
            holder = asyncio.create_task(asyncio.to_thread(hold, held, over))
            await asyncio.to_thread(held.wait, 20)
            for _ in range(30):
                answer = await guarded.client.infer(ORDINARY, timeout_s=2.0)
                assert answer.ok, answer.details
            over.set()
            await holder

    asyncio.run(story())


def test_unfinished_messages_do_not_keep_others_out(bundle: Path) -> None:
    """As many as there is memory for, each held open: whoever comes gets in when the oldest have had their time."""

    async def story() -> None:
        async with guarding(bundle, max_message_bytes=2**20, max_bytes_in_flight=8 * 2**20) as guarded:

            def hold(over: threading.Event) -> None:
                with Wire(guarded.serving.address) as wire:
                    for _ in range(6):
                        stream = wire.open(grpc_headers(INFER))
                        wire.body(stream, message(bytes(2**19))[:1000], end=False)
                    over.wait(20)

            over = threading.Event()
            holders = [asyncio.create_task(asyncio.to_thread(hold, over)) for _ in range(3)]
            await until(lambda: guarded.serving.readiness.because is None)
            while await guarded.metric("guard_bytes_in_flight") < 6 * 2**20:
                await asyncio.sleep(0.01)
            refused = 0
            for _ in range(100):
                answer = await guarded.client.infer(ORDINARY)
                if answer.ok:
                    break
                refused += 1
                assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert answer.ok
            assert (await guarded.client.call("/grpc.health.v1.Health/Check", b"")).ok  # its memory is set aside
            over.set()
            await asyncio.gather(*holders)
            assert await guarded.metric("guard_refused_total", reason="overloaded") >= refused

    asyncio.run(story())


@measured
def test_clients_that_leave_leave_nothing_behind(bundle: Path) -> None:
    """grpc.aio keeps the operations and the metadata of each call that is cancelled as a task, for good."""

    async def story() -> None:
        fake = FakeUpstream()
        big = [(b"x-%d" % number, b"a" * 3000) for number in range(2)]
        async with listening(fake) as upstream:
            with guard_process(config_for(bundle, upstream, upstream_timeout_s=60.0)) as guard:
                address = (await asyncio.to_thread(guard.until_event, "listening"))["inference"]
                await asyncio.to_thread(guard.until_event, "ready")
                fake.hang_infer = True

                async def leave(rounds: int) -> None:
                    for _ in range(rounds):
                        seen = fake.calls.count("ModelInfer")
                        with Wire(address) as wire:
                            for _ in range(40):
                                stream = await asyncio.to_thread(wire.open, grpc_headers(INFER, *big))
                                await asyncio.to_thread(wire.body, stream, message(CLEAN))
                            await until(lambda seen=seen: fake.calls.count("ModelInfer") == seen + 40)
                        await until(lambda seen=seen: fake.cancelled == seen + 40)

                await leave(5)
                grown = []
                for _ in range(2):  # the allocator may take some megabytes more once; what is kept for good grows on
                    before = resident_mib(guard.popen.pid)
                    await leave(25)  # 1,000 calls with 6 KB each
                    grown.append(resident_mib(guard.popen.pid) - before)
                assert min(grown) < 3, grown

    asyncio.run(story())


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "zlib"])
def test_a_bomb_is_stopped_at_the_largest_message(bundle: Path, pack: Any) -> None:
    async def story() -> None:
        async with guarding(bundle, max_message_bytes=2**20) as guarded:
            for size, code in ((2**27, grpc.StatusCode.RESOURCE_EXHAUSTED), (2**19, grpc.StatusCode.INVALID_ARGUMENT)):
                answer = await guarded.client.call("ModelInfer", pack(bytes(size)))
                assert (size, answer.code) == (size, code)
            assert (await guarded.client.call("ModelInfer", pack(CLEAN))).ok
            assert guarded.upstream.requests == [CLEAN]  # what was inspected is what went up
            broken = pack(CLEAN)[:-3]
            assert (await guarded.client.call("ModelInfer", broken)).code is grpc.StatusCode.INVALID_ARGUMENT
            assert (await guarded.client.call("ModelInfer", pack(CLEAN) + b"x")).reason == "MALFORMED_REQUEST"

    asyncio.run(story())


def test_a_message_larger_than_the_limit_is_refused_and_counted(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, max_message_bytes=2**20) as guarded:
            answer = await guarded.client.call("ModelInfer", bytes(3 * 2**20))
            assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            await counted(guarded, {"refused": 1})

    asyncio.run(story())


async def counted(guarded: Any, wanted: dict[str, int]) -> None:
    """The books say so, as soon as the last call has ended on the guard's side, too."""
    deadline = time.monotonic() + 20
    while True:
        found = {
            action: int(value)
            for action in ("pass", "reject", "refused", "failed", "expired", "cancelled", "unchecked")
            if (value := await guarded.metric("guard_requests_total", action=action))
        }
        if found == wanted:
            return
        assert time.monotonic() < deadline, (found, wanted)
        await asyncio.sleep(0.01)


def test_the_books_balance_whatever_becomes_of_a_call(bundle: Path) -> None:
    """sent = answered + refused + failed upstream + cancelled + expired, by kind."""

    async def story() -> None:
        fake = FakeUpstream()
        async with guarding(bundle, fake) as guarded:
            client = guarded.client
            for _ in range(3):
                assert (await client.infer(ORDINARY)).ok
            for _ in range(2):
                assert (await client.infer(tiny_bundle.bright(1))).code is grpc.StatusCode.PERMISSION_DENIED
            for bad in (b"\xff\xff", b"", CLEAN + field(99, b"x")):
                assert not (await client.call("ModelInfer", bad)).ok
            fake.fail = (grpc.StatusCode.INVALID_ARGUMENT, "no", ())
            for _ in range(4):
                await client.infer(ORDINARY)
            fake.fail = (grpc.StatusCode.UNAVAILABLE, "busy", ())
            await client.infer(ORDINARY)
            fake.fail = None
            fake.hang_infer = True
            late = [asyncio.create_task(client.infer(ORDINARY, timeout_s=LATE_S)) for _ in range(2)]
            await until(lambda: fake.calls.count("ModelInfer") == 10)  # within their time
            assert {(await call).code for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
            leaving = [asyncio.create_task(client.infer(ORDINARY)) for _ in range(3)]
            await until(lambda: fake.calls.count("ModelInfer") == 13)
            for call in leaving:
                call.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            await counted(guarded, {"pass": 3, "reject": 2, "refused": 3, "failed": 5, "expired": 2, "cancelled": 3})
            assert await guarded.metric("guard_upstream_failures_total", code="INVALID_ARGUMENT") == 4
            assert await guarded.metric("guard_upstream_failures_total", code="UNAVAILABLE") == 1
            assert await guarded.metric("guard_request_seconds_count") == 18

    asyncio.run(story())


def test_a_dead_upstream_is_no_pass(bundle: Path) -> None:
    async def story() -> None:
        config = config_for(bundle, f"127.0.0.1:{free_port()}")
        async with running(config, log=Log("error", io.StringIO())) as serving, calling(serving.address) as client:
            for _ in range(5):
                assert (await client.infer(ORDINARY)).code is grpc.StatusCode.UNAVAILABLE
            assert await metric_of(serving.metrics_address, "guard_requests_total", action="pass") == 0
            assert await metric_of(serving.metrics_address, "guard_requests_total", action="failed") == 5
            assert await metric_of(serving.metrics_address, "guard_upstream_failures_total", code="UNAVAILABLE") == 5

    asyncio.run(story())


def test_connections_are_bounded(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, max_connections=20) as guarded:
            assert (await guarded.client.infer(ORDINARY)).ok
            host, _, port = guarded.serving.address.rpartition(":")
            opened = [socket.create_connection((host, int(port))) for _ in range(60)]
            try:
                assert (await guarded.client.infer(ORDINARY)).ok  # whoever was there before stays
            finally:
                for connection in opened:
                    connection.close()

    asyncio.run(story())


def test_calls_on_one_connection_are_bounded(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, max_calls_per_connection=4) as guarded:
            assert await asyncio.to_thread(streams_refused, guarded.serving.address, 6) == 2
            assert (await guarded.client.infer(ORDINARY)).ok  # on another

    asyncio.run(story())


def streams_refused(address: str, opened: int) -> int:
    """How many of so many calls on one connection, none of them with a message yet, the other side does not take."""
    with Wire(address) as wire:
        live = wire.open(grpc_headers(LIVE), end=True)
        assert wire.answer(live).status == 0  # the core holds a client to the limit once it was told of it
        streams = [wire.open(grpc_headers(INFER)) for _ in range(opened)]
        return sum(wire.answer(stream, 0.3).reset == REFUSED_STREAM for stream in streams)


@measured
def test_thousands_of_calls_that_are_taken_back_at_once(bundle: Path, tmp_path: Path) -> None:
    """HEADERS and RST_STREAM by the thousand: nobody else waits, and each is in the books or never came."""
    with model_process(tmp_path) as model:
        upstream = model.until_event("listening")["inference"]
        with guard_process(config_for(bundle, upstream)) as guard:
            address = guard.until_event("listening")["inference"]
            guard.until_event("ready")
            block = b"".join(literal(*pair) for pair in grpc_headers(INFER))

            def take_back() -> None:
                with Wire(address) as wire:
                    for number in range(2000):
                        stream = 1 + 2 * number
                        wire.send(headers(stream, block) + data(stream, message(CLEAN)) + reset(stream))

            assert shortest_wait_s(address, take_back) < PATIENT_S
            assert unary(address, LIVE).status == 0
            assert unary(address, INFER, CLEAN).status == 0


def test_a_request_for_what_the_model_cannot_take_is_counted_before_it_is_read(bundle: Path) -> None:
    """The number of items is checked before the tensor is: a shape costs nothing to write."""

    async def story() -> None:
        async with guarding(bundle) as guarded:
            request = infer_request(ORDINARY)
            request.inputs[0].shape[0] = 2**40
            answer = await guarded.client.call("ModelInfer", request)
            assert (answer.code, "can never be inspected" in answer.details) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                True,
            )
            request.inputs[0].shape[:] = [1] * 1000
            assert "has shape [1, 1, 1, 1, 1, 1, 1, 1]" in (await guarded.client.call("ModelInfer", request)).details

    asyncio.run(story())


def test_upstream_answers_are_read_off_the_loop_and_never_fail_a_call(bundle: Path) -> None:
    class Odd(FakeUpstream):
        def infer_response(self, request: bytes) -> bytes:
            return field(5, b"") * 300_000

    async def story() -> None:
        async with guarding(bundle, Odd()) as guarded:
            answer = await guarded.client.infer(np.concatenate([ORDINARY, ORDINARY]))
            assert answer.ok
            assert len(answer.body) == 600_000

    asyncio.run(story())
