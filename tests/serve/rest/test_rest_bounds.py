"""Framing, slowness and number: what HTTP clients can do to a listener, and what becomes of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.serve import tiny_bundle
from tests.serve.guarded import until
from tests.serve.rest.fake_rest_upstream import FakeRestUpstream
from tests.serve.rest.rest_guarded import (
    BRIGHT,
    INFER,
    ORDINARY,
    RestGuarded,
    binary_body,
    json_body,
    rest_guarding,
)

BODY = json_body(ORDINARY)
HEAD = f"POST {INFER} HTTP/1.1\r\nhost: x\r\n".encode()
CLOSE = b"connection: close\r\n"


def with_length(body: bytes, more: bytes = b"") -> bytes:
    return HEAD + more + b"content-length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes, size: int, more: bytes = b"") -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return HEAD + more + b"transfer-encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_chunked_body_is_inspected_and_goes_up_as_one(bundle: Path, size: int) -> None:
    async def story() -> None:
        async with rest_guarding(bundle) as guarded:
            assert (await guarded.raw(chunked(BODY, size, CLOSE))).startswith(b"HTTP/1.1 200 ")
            assert (await guarded.raw(chunked(json_body(BRIGHT), size, CLOSE))).startswith(b"HTTP/1.1 403 ")
            assert guarded.upstream.bodies == [BODY]
            up = dict(guarded.upstream.headers[0])
            assert up["content-length"] == str(len(BODY))
            assert "transfer-encoding" not in up

    asyncio.run(story())


AMBIGUOUS = {
    "both lengths": HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n" + b"0\r\n\r\n",
    "two lengths": HEAD + b"content-length: 4\r\ncontent-length: 5\r\n\r\n12345",
    "a list of lengths": HEAD + b"content-length: 4, 5\r\n\r\n12345",
    "a signed length": HEAD + b"content-length: +4\r\n\r\n1234",
    "a length in hex": HEAD + b"content-length: 0x4\r\n\r\n1234",
    "chunked twice": HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, gzip": HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "odd chunked": HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": HEAD + b"content-length : 4\r\n\r\n1234",
    "a folded header": HEAD + b"x: 1\r\n transfer-encoding: chunked\r\ncontent-length : 4\r\n\r\n1234",
    "a lone line feed in a chunk size": HEAD + b"transfer-encoding: chunked\r\n\r\n4\n1234\n0\n\n",
    "a chunk that is longer": HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n1234\r\n0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "a head without end": HEAD + b"x: " + b"y" * 200_000,
    "two hosts": HEAD + b"host: y\r\n" + b"content-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_framing_that_two_servers_could_read_apart_is_refused(bundle: Path, case: str) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, read_timeout_s=1.0) as guarded:
            with suppress(ConnectionResetError):  # what it sent beyond the limit was not read
                answer = await guarded.raw(AMBIGUOUS[case])
                assert int(answer.split(b" ")[1]) in (400, 404, 408), answer
            assert guarded.upstream.bodies == []

    asyncio.run(story())


def test_a_request_behind_another_is_inspected_too(bundle: Path) -> None:
    """Pipelined, and smuggled where a server took another length."""

    async def story() -> None:
        async with rest_guarding(bundle) as guarded:
            answer = await guarded.raw(
                with_length(BODY) + with_length(json_body(BRIGHT)) + with_length(BODY) + with_length(b"{", CLOSE)
            )
            statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
            assert statuses == [200, 403, 200, 400]
            assert guarded.upstream.bodies == [BODY, BODY]

    asyncio.run(story())


def test_a_client_that_expects_100_is_told_before_its_body_comes_or_is_refused_without_it(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, max_message_bytes=1_000_000, max_bytes_in_flight=4_000_000) as guarded:
            reader, writer = await asyncio.open_connection(*guarded.address)
            writer.write(HEAD + CLOSE + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(BODY)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()
            answer = await guarded.raw(HEAD + CLOSE + b"expect: 100-continue\r\ncontent-length: 9000000\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 413 ")

    asyncio.run(story())


def test_a_slow_head_and_a_slow_body_end_their_own_request_alone(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, read_timeout_s=1.5) as guarded:
            began = time.monotonic()
            slow_head = asyncio.create_task(guarded.raw(HEAD))
            slow_body = asyncio.create_task(guarded.raw(with_length(BODY, CLOSE)[:-5]))
            silent = asyncio.create_task(guarded.raw(b""))
            assert (await guarded.infer(ORDINARY)).status_code == 200
            assert (await slow_head).startswith(b"HTTP/1.1 408 ")
            body = await slow_body
            assert body.startswith(b"HTTP/1.1 408 ")
            assert b"guard-reason: EXPIRED" in body
            assert (await silent).startswith(b"HTTP/1.1 408 ")
            assert time.monotonic() - began < 15
            assert await guarded.metric("guard_requests_total", action="expired") == 1

    asyncio.run(story())


def test_a_client_that_trickles_its_head_or_its_refused_body_is_cut_off(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, read_timeout_s=0.5, max_message_bytes=100_000) as guarded:
            for begin in (HEAD, HEAD + b"content-length: 100000000\r\n\r\n"):
                reader, writer = await asyncio.open_connection(*guarded.address)
                writer.write(begin)

                async def trickle(writer: asyncio.StreamWriter = writer) -> None:
                    while True:
                        writer.write(b"x")
                        await asyncio.sleep(0.05)

                trickling = asyncio.create_task(trickle())
                async with asyncio.timeout(10):
                    with suppress(ConnectionError):
                        await reader.read()
                trickling.cancel()
                writer.close()
            assert (await guarded.infer(ORDINARY)).status_code == 200

    asyncio.run(story())


def test_a_client_that_leaves_ends_the_model_servers_work(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, FakeRestUpstream(hang_infer=True)) as guarded:
            _, writer = await asyncio.open_connection(*guarded.address)
            writer.write(with_length(BODY))
            await until(lambda: len(guarded.upstream.bodies) == 1)
            writer.close()
            await until(lambda: guarded.upstream.cancelled == 1)
            assert await guarded.metric("guard_requests_total", action="cancelled") == 1
            assert await guarded.metric("guard_http_handled_total", procedure="ModelInfer", code="499") == 1
            assert await guarded.metric("guard_bytes_in_flight") == 0

    asyncio.run(story())


def test_a_client_that_leaves_within_its_body_is_counted_as_cancelled(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle) as guarded:
            _, writer = await asyncio.open_connection(*guarded.address)
            writer.write(with_length(BODY)[:-5])
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.close()
            while await guarded.metric("guard_requests_total", action="cancelled") == 0:
                await asyncio.sleep(0.02)
            assert guarded.upstream.bodies == []

    asyncio.run(story())


async def idle_connections(guarded: RestGuarded, number: int) -> list[asyncio.StreamWriter]:
    return [(await asyncio.open_connection(*guarded.address))[1] for _ in range(number)]


def test_idle_connections_beyond_the_limit_make_room_for_new_ones(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, max_connections=8) as guarded:
            held = await idle_connections(guarded, 50)
            for _ in range(3):
                answer = await guarded.raw(with_length(BODY, CLOSE))
                assert answer.startswith(b"HTTP/1.1 200 ")
            for writer in held:
                writer.close()

    asyncio.run(story())


def test_an_old_connection_is_closed_behind_an_answer(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, max_connection_age_s=0.2) as guarded:
            reader, writer = await asyncio.open_connection(*guarded.address)
            writer.write(with_length(BODY))
            assert b"connection: close" not in await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.05)
            for _ in range(20):
                await asyncio.sleep(0.03)
            writer.write(with_length(BODY))
            assert b"connection: close" in await reader.read()
            writer.close()

    asyncio.run(story())


def test_a_packed_body_is_held_packed_and_plain_and_counted_so(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(
            bundle, FakeRestUpstream(slow_s=0.5), mode="shadow", max_message_bytes=14_000, max_bytes_in_flight=100_000
        ) as guarded:
            body, headers = binary_body(tiny_bundle.ordinary(200))
            packed = gzip.compress(body)
            assert len(packed) < 14_000 < len(packed) + len(body)
            posting = asyncio.create_task(guarded.post(packed, headers | {"content-encoding": "gzip"}))
            await until(lambda: bool(guarded.upstream.bodies))
            assert await guarded.metric("guard_bytes_in_flight") == len(packed) + len(body)
            assert (await posting).status_code == 200
            assert await guarded.metric("guard_bytes_in_flight") == 0

    asyncio.run(story())


def test_a_large_request_holds_nobody_up(bundle: Path) -> None:
    """8 MB of JSON are read on a thread by pieces, while health is answered within 100 ms."""

    async def story() -> None:
        async with rest_guarding(bundle, max_message_bytes=16_000_000, max_queue_rows=2**18) as guarded:
            large = json.loads(json_body(tiny_bundle.ordinary(20_000)))
            body = json.dumps(large).encode()
            assert len(body) > 5_000_000
            longest: list[float] = []
            while len(longest) < 3 and min(longest, default=1.0) >= 1.0:  # what holds up does so each time
                posting, waits = asyncio.create_task(guarded.post(body)), [0.0]
                while not posting.done():
                    began = time.monotonic()
                    assert (await guarded.client.get("/v2/health/live")).status_code == 200
                    waits.append(time.monotonic() - began)
                    await asyncio.sleep(0.005)
                assert posting.result().status_code in (200, 503), posting.result().text
                longest.append(max(waits))
            assert min(longest) < 1.0

    asyncio.run(story())
