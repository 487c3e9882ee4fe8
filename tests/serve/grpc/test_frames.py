"""The client by hand: header blocks as in RFC 7541's appendix, frames to the byte, and a guard that it can call."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.serve import tiny_bundle
from tests.serve.frames import continuation, data, frame, grpc_headers, headers, message, settings, unary
from tests.serve.guarded import guarding, infer_request
from tests.serve.hpack import CODES, FIXED, Decoder, HpackError, integer, literal, text
from tests.serve.odd_calls import HEALTH, INFER, LIVE
from tests.side import reach

REQUESTS = [  # C.4: three blocks of one connection, Huffman texts and a table that grows
    (
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        {b":path": b"/", b":authority": b"www.example.com"},
    ),
    ("828684be5886a8eb10649cbf", {b":authority": b"www.example.com", b"cache-control": b"no-cache"}),
    (
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        {b":path": b"/index.html", b":authority": b"www.example.com", b"custom-key": b"custom-value"},
    ),
]


def test_header_blocks_of_the_standard_are_read() -> None:
    decoder = Decoder()
    for block, wanted in REQUESTS:
        found = dict(decoder.fields(bytes.fromhex(block)))
        assert wanted.items() <= found.items()
    assert decoder.size == 164
    assert [name for name, _ in decoder.remembered] == [b"custom-key", b"cache-control", b":authority"]


def test_integers_and_texts_of_the_standard_are_written() -> None:
    assert integer(10, 5) == b"\x0a"
    assert integer(1337, 5) == b"\x1f\x9a\x0a"
    assert text(b"www.example.com", huffman=True) == bytes.fromhex("8cf1e3c2e5f23a6ba0ab90f4ff")
    assert literal(b"x" * 200, b"") == b"\x10\x7f\x49" + b"x" * 200 + b"\0"


def test_the_tables_are_those_of_another_implementation() -> None:
    reach("h2")
    from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
    from hpack.table import HeaderTable

    assert FIXED == HeaderTable.STATIC_TABLE
    assert [CODES[byte] for byte in range(256)] == list(zip(REQUEST_CODES_LENGTH, REQUEST_CODES, strict=True))[:256]


@pytest.mark.parametrize("block", ["80", "ff80", "0001", "be", "008100", "0001780582", "3f"])
def test_what_is_no_header_block_is_refused(block: str) -> None:
    with pytest.raises(HpackError):
        Decoder().fields(bytes.fromhex(block))


def test_every_text_comes_back() -> None:
    every = bytes(range(256))
    for huffman in (False, True):
        assert Decoder().fields(literal(every, every * 3, huffman=huffman)) == [(every, every * 3)]


def test_frames_to_the_byte() -> None:
    assert settings((4, 65_536)) == bytes.fromhex("000006040000000000000400010000")
    assert headers(1, b"\x88", end=True) == bytes.fromhex("00000101050000000188")
    assert data(3, b"ab", padding=2) == bytes.fromhex("00000500080000000302616200" + "00")
    assert continuation(1, b"", last=False) == bytes.fromhex("000000090000000001")
    assert frame(0x55, 0xFF, 2**31 - 1, b"x", length=2**24 - 1) == bytes.fromhex("ffffff55ff7fffffff78")
    assert message(b"abc", flag=1, length=2**32 - 1) == bytes.fromhex("01ffffffff616263")


def test_a_guard_is_called_by_hand(bundle: Path) -> None:
    """Answer, status, details and trailing metadata, beyond the first windows of both sides."""

    async def story() -> None:
        async with guarding(bundle) as guarded:
            address = guarded.serving.address

            async def call(path: bytes, items: int = 0) -> tuple[int | None, str, int]:
                body = infer_request(tiny_bundle.ordinary(items)).SerializeToString() if items else b""
                answer = await asyncio.to_thread(unary, address, path, body)
                return answer.status, answer.details, len(answer.body)

            assert await call(LIVE) == (0, "", 7)
            assert (await call(HEALTH))[0] == 0
            assert (await call(INFER, 1))[0] == 0
            status, details, _ = await call(INFER, 600)
            assert (status, "600 items" in details) == (3, True)
            status, details, _ = await call(b"/inf\xc3\xa9rence/x")
            assert (status, "allow_methods" in details) == (12, True)

    asyncio.run(story())


def test_headers_of_a_grpc_client() -> None:
    assert grpc_headers(LIVE, (b"x", b"\xff"))[2::4] == [(b":path", LIVE), (b"x", b"\xff")]
