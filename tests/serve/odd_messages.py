"""Message frames that lie, bombs and floods, over lawful HTTP/2: each a function of a generator, as in `odd_frames`."""

from __future__ import annotations

import functools
import gzip
import zlib
from random import Random

from tests.serve import tiny_bundle
from tests.serve.frames import block_of, data, grpc_headers, headers, message
from tests.serve.guarded import infer_request
from tests.serve.odd_calls import INFER, LIVE, START, Script, blocks, call, chunks, clean, noise

BOMB_MIB = (1, 8, 32)  # unpacked; a thousandth of it travels
FLOODS = (1_000, 30_000, 200_000, 1_000_000)  # sub-messages of one request
UNITS = (  # two bytes each, a thousand to a packed one
    b"\x32\0",  # an empty output
    b"\x2a\0",  # an empty input
    b"\x2a\2\x2a\0",  # an input's empty contents
    b"\x2a\2\x22\0",  # an input's empty parameter
    b"\x22\0",  # an empty parameter
    b"\x3a\0",  # an empty raw entry
    b"\x0a\0",  # an empty model name
    b"\x78\0",  # an unknown number
)


def lying_prefix(rng: Random) -> list[bytes]:
    """A message frame whose length or flag is a lie."""
    body = clean()
    length = rng.choice([None, 0, len(body) - 1, len(body) + 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
    flag = rng.choice([0, 0, 1, 2, 0x80, 0xFF])
    payload = message(body, flag=flag, length=length)
    payload += rng.choice([b"", b"\0", message(body), message(b"") * 5])  # a second message of a unary call
    payload = payload[: rng.choice([len(payload), len(payload), rng.randrange(len(payload) + 1)])]
    opened = blocks(1, grpc_headers(rng.choice([INFER, LIVE])))
    return [START, opened, chunks(1, payload, end=rng.random() < 0.8), call(3, LIVE)]


def compressed(rng: Random) -> list[bytes]:
    """Compressed without saying how, said wrongly, or not compressed at all."""
    packed = {b"gzip": gzip.compress(clean(), mtime=0), b"deflate": zlib.compress(clean()), b"identity": clean()}
    body = rng.choice([*packed.values(), noise(rng, 100), b"", packed[b"gzip"][:-6], packed[b"gzip"] * 2])
    named = rng.choice([b"gzip", b"deflate", b"identity", b"br", b"snappy", b"GZIP", b"", noise(rng, 5), None])
    more = [] if named is None else [(b"grpc-encoding", named)]
    opened = blocks(1, grpc_headers(INFER, *more))
    return [START, opened, chunks(1, message(body, flag=rng.choice([1, 1, 0, 3]))), call(3, LIVE)]


@functools.cache
def bomb(mib: int, kind: str) -> bytes:
    """Zeros, packed: alone, or as the raw tensor of a request."""
    zeros = bytes(mib * 2**20)
    if kind == "request":
        request = infer_request(tiny_bundle.ordinary(1))
        request.raw_input_contents[0] = zeros
        zeros = request.SerializeToString()
    return gzip.compress(zeros, mtime=0)


def gzip_bomb(rng: Random) -> list[bytes]:
    body = bomb(rng.choice(BOMB_MIB), rng.choice(["zeros", "request"]))
    opened = blocks(1, grpc_headers(rng.choice([INFER, INFER, LIVE]), (b"grpc-encoding", b"gzip")))
    return [START, opened, chunks(1, message(body, flag=1)), call(3, LIVE)]


@functools.cache
def flood(unit: bytes, count: int, at_end: bool) -> bytes:  # noqa: FBT001  a cache key
    parts = clean(), unit * count
    return gzip.compress(b"".join(parts if at_end else parts[::-1]), mtime=0)


def submessage_flood(rng: Random) -> list[bytes]:
    """Parts of a message that cost a parser much more than the client that sends them."""
    body = flood(rng.choice(UNITS), rng.choice(FLOODS), rng.random() < 0.5)
    opened = blocks(1, grpc_headers(INFER, (b"grpc-encoding", b"gzip")))
    return [START, opened, chunks(1, message(body, flag=1)), call(3, LIVE)]


def crumbs(rng: Random) -> list[bytes]:
    """A message in frames of one byte each, some of them padded."""
    body = message(clean())
    pad = rng.choice([None, None, None, 0, 9])
    pieces = [data(1, body[at : at + 1], padding=pad) for at in range(len(body))]
    return [
        START,
        headers(1, block_of(grpc_headers(INFER))),
        *pieces[:50],
        b"".join(pieces[50:]),
        data(1, b"", end=True),
    ]


MESSAGES: dict[str, Script] = {
    "lying prefix": lying_prefix,
    "compressed": compressed,
    "gzip bomb": gzip_bomb,
    "sub-message flood": submessage_flood,
    "crumbs": crumbs,
}
