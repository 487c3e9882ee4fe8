"""Connections that break HTTP/2, each a function of a generator: the pieces of bytes that a client sends.

Rule 1: a script reads no clock and no answer, so that seed and number are enough to send it again.
Rule 2: every script begins with what a client sends first; what is wrong comes after it, or in it.
"""

from __future__ import annotations

import struct
from random import Random

from tests.serve import frames
from tests.serve.frames import (
    END_HEADERS,
    END_STREAM,
    PADDED,
    PREFACE,
    PRIORITISED,
    block_of,
    continuation,
    data,
    frame,
    goaway,
    grpc_headers,
    headers,
    message,
    ping,
    priority,
    reset,
    settings,
    window_update,
)
from tests.serve.hpack import integer, literal, text
from tests.serve.odd_calls import INFER, LIVE, START, Script, call, clean, noise

WORST = (0, 1, 2, 2**14, 2**16 - 1, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)  # sizes that parsers get wrong
MAX_FRAMES = 400  # of a flood; more only takes longer


def mutated_preface(rng: Random) -> list[bytes]:
    broken = bytearray(PREFACE)
    for _ in range(rng.randint(1, 3)):
        broken[rng.randrange(len(broken))] = rng.randrange(256)
    first = rng.choice(
        [
            bytes(broken),
            PREFACE[: rng.randrange(len(PREFACE))],
            PREFACE + PREFACE,
            b"GET / HTTP/1.1\r\nHost: guard\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(64),  # TLS
            rng.randbytes(rng.randrange(200)),
            b"",
        ]
    )
    return [first, settings(), call(1, LIVE)]


def no_settings(rng: Random) -> list[bytes]:
    """The first frame has to be SETTINGS."""
    return [PREFACE, rng.choice([call(1, LIVE), ping(), window_update(0, 1), goaway(0), frame(4, 1, 0)]), settings()]


def wrong_lengths(rng: Random) -> list[bytes]:
    """Payloads that are too short or too long for their frame, and headers that lie about them."""
    kind, size = rng.randrange(12), rng.choice([0, 1, 3, 4, 5, 7, 8, 9, 100])
    stream = rng.choice([0, 1, 2, 3, 2**31 - 1])
    flags = rng.choice([0, END_STREAM, END_HEADERS, PADDED, PRIORITISED, 0xFF])
    lie = rng.choice([None, None, size + rng.randint(1, 9), max(0, size - 1), 16_385, 2**20, 2**24 - 1])
    return [START, frame(kind, flags, stream, rng.randbytes(size), length=lie), call(3, LIVE), ping()]


def oversized_frames(rng: Random) -> list[bytes]:
    size = rng.choice([16_385, 20_000, 65_536, 200_000])
    kind = rng.choice([frames.DATA, frames.HEADERS, frames.SETTINGS, frames.CONTINUATION, frames.PING, 0x55])
    opened = headers(1, block_of(grpc_headers(INFER)))
    return [START, opened, frame(kind, 0, rng.choice([0, 1]), bytes(size)), call(3, LIVE)]


def padding(rng: Random) -> list[bytes]:
    """Padding as long as the payload, longer, or nothing but padding."""
    length = rng.choice([0, 1, 200, 255])
    block = block_of(grpc_headers(LIVE))
    lie = frame(frames.DATA, PADDED | END_STREAM, 1, bytes([length]) + bytes(rng.choice([0, 1, length, 10])))
    lawful = data(1, message(b""), end=True, padding=length)
    if rng.random() < 0.5:
        opened = headers(1, block, padding=length)
    else:
        opened = frame(frames.HEADERS, END_HEADERS | PADDED, 1, bytes([rng.choice([length, 255])]) + block)
    many = b"".join(data(1, b"", padding=255) for _ in range(rng.choice([0, 1, 100])))
    return [START, opened, many, rng.choice([lawful, lie])]


def continuation_flood(rng: Random) -> list[bytes]:
    """A header block that does not end, or that something else is sent in the middle of."""
    piece = rng.choice([b"", literal(b"x", b"y"), literal(b"x-long", bytes(1000).replace(b"\0", b"a")), noise(rng, 20)])
    flood = [continuation(1, piece, last=False) for _ in range(rng.choice([1, 10, MAX_FRAMES]))]
    between = rng.choice([b"", ping(), data(1, b"x"), call(3, LIVE), reset(1), settings(), continuation(3, b"")])
    end = rng.choice([b"", continuation(1, b"", last=True), continuation(5, b"", last=True)])
    begin = headers(1, block_of(grpc_headers(LIVE)), last=rng.random() < 0.1, end=rng.random() < 0.5)
    return [START, begin, b"".join(flood), between, end, call(7, LIVE)]


def rapid_reset(rng: Random) -> list[bytes]:
    """CVE-2023-44487: calls that are taken back as soon as they are made."""
    path = rng.choice([LIVE, INFER, b"/nobody/knows"])
    body = data(1, b"")[:0] if rng.random() < 0.3 else None
    block, sent = block_of(grpc_headers(path)), []
    for stream in range(1, 2 * rng.choice([10, 100, MAX_FRAMES]), 2):
        opened = headers(stream, block, end=rng.random() < 0.1)
        filled = data(stream, message(clean()), end=rng.random() < 0.5) if body is None else body
        sent.append(opened + filled + reset(stream, rng.choice([0, 1, 5, 8, 0xFFFFFFFF])))
    return [START, *(b"".join(sent[at : at + 50]) for at in range(0, len(sent), 50)), call(9001, LIVE)]


def window_updates(rng: Random) -> list[bytes]:
    """Increments of nothing and of too much, for the connection, open, idle and closed streams."""
    first = [(frames.INITIAL_WINDOW, rng.choice(WORST))] if rng.random() < 0.5 else []
    stream = rng.choice([0, 1, 1, 3, 2, 2**31 - 1])
    updates = [window_update(stream, rng.choice(WORST)) for _ in range(rng.choice([1, 2, 50, MAX_FRAMES]))]
    return [PREFACE, settings(*first), call(1, INFER, clean()), b"".join(updates), ping()]


def odd_settings(rng: Random) -> list[bytes]:
    keys = [*range(8), 0x10, 0xFE03, 0xFFFF]
    pairs = [(rng.choice(keys), rng.choice(WORST)) for _ in range(rng.choice([1, 2, 6, 500]))]
    return [PREFACE, settings(*pairs), call(1, LIVE), settings(*pairs[::-1]), call(3, INFER, clean())]


def control_flood(rng: Random) -> list[bytes]:
    """Frames that each want an answer, or none, without a call."""
    unit = rng.choice(
        [
            settings(),
            settings((frames.INITIAL_WINDOW, 0)),
            settings((frames.HEADER_TABLE_SIZE, 0), (frames.HEADER_TABLE_SIZE, 4096)),
            frame(frames.SETTINGS, frames.ACK, 0),
            ping(),
            ping(ack=True),
            frame(frames.PING, 0, 0, rng.randbytes(8)),
            data(1, b""),
            frame(0x55, 0xFF, rng.choice([0, 1]), b"unknown"),
            priority(1, 3, 255, exclusive=True),
            reset(1),
            window_update(0, 1),
        ]
    )
    return [START, headers(1, block_of(grpc_headers(LIVE))), *[unit * 100] * rng.choice([1, 10, 40]), call(3, LIVE)]


def priorities(rng: Random) -> list[bytes]:
    """Streams that depend on themselves, on each other in a ring, and on nobody."""
    ring = [priority(s, (s + 2) % 200 | 1, rng.randrange(256), exclusive=rng.random() < 0.5) for s in range(1, 200, 2)]
    own = priority(1, 1, 0)
    block = struct.pack(">IB", rng.choice([0, 1, 2**32 - 1]), 255) + block_of(grpc_headers(LIVE))
    opened = frame(frames.HEADERS, END_HEADERS | PRIORITISED, 1, block)
    return [START, b"".join(ring), rng.choice([own, b""]), opened, data(1, message(b""), end=True)]


def wrong_streams(rng: Random) -> list[bytes]:
    """DATA and HEADERS where none may be: before the call, after its end, on stream 0, even, or lower than the last."""
    stream = rng.choice([0, 2, 1, 3, 99, 2**31 - 1])
    late = rng.choice(
        [
            data(stream, message(clean()), end=True),
            data(1, b"more"),
            headers(1, block_of(grpc_headers(LIVE)), end=True),
            call(stream, LIVE),
            frame(frames.PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + block_of(grpc_headers(LIVE))),
            frame(frames.HEADERS, END_HEADERS, stream | 2**31, block_of(grpc_headers(LIVE))),
        ]
    )
    order = [call(5, LIVE), late, call(rng.choice([1, 3, 5, 7]), LIVE)]
    if rng.random() < 0.3:
        rng.shuffle(order)
    return [START, *order]


def goaway_amid(rng: Random) -> list[bytes]:
    leave = goaway(rng.choice(WORST), rng.choice([0, 1, 11, 0xFFFFFFFF]), rng.randbytes(rng.choice([0, 8, 5000])))
    opened = headers(1, block_of(grpc_headers(INFER)))
    half = message(clean())
    return [START, opened, data(1, half[:20]), leave, data(1, half[20:], end=True), call(3, LIVE), leave]


def odd_hpack(rng: Random) -> list[bytes]:
    """Blocks that name no entry, overflow an integer, or fill the table."""
    usual = block_of(grpc_headers(LIVE), huffman=rng.random() < 0.5)
    remembered = b"".join(b"\x40" + text(b"x-%d" % n) + text(rng.randbytes(40).hex().encode()) for n in range(200))
    odd = rng.choice(
        [
            b"\x80",  # entry 0
            integer(rng.choice([62, 100, 2**20, 2**40]), 7, 0x80),
            integer(rng.choice([0, 4096, 4097, 2**32]), 5, 0x20),  # the table's size, after a field
            b"\x20" * 50,
            b"\xff" * rng.choice([2, 10, 200]),  # an integer without end
            b"\x00\x01x" + integer(rng.choice([127, 128, 2**14, 2**32]), 7),  # a text without bytes
            b"\x00\x81\xff\x00",  # Huffman: padding alone
            b"\x00\x84\xff\xff\xff\xff\x00",  # Huffman: the end of text
            b"\x00\x82\x00\x00\x00",  # Huffman: padded with zeros
            remembered,
            remembered
            + integer(62 + rng.randrange(80), 7, 0x80) * rng.choice([1, 1000]),  # short to send, long to keep
            noise(rng, 40),
        ]
    )
    block = usual + odd if rng.random() < 0.7 else odd + usual
    pieces = [block[at : at + frames.FRAME_BYTES] for at in range(0, len(block), frames.FRAME_BYTES)]
    more = [continuation(1, piece, last=piece is pieces[-1]) for piece in pieces[1:]]
    return [START, headers(1, pieces[0], last=not more), b"".join(more), data(1, message(b""), end=True), call(3, LIVE)]


def random_frames(rng: Random) -> list[bytes]:
    sent = [START]
    for _ in range(rng.choice([1, 5, 40])):
        kind, flags = rng.choice([*range(10), *range(10), 0x20, 0xFF]), rng.choice([0, 1, 4, 5, rng.randrange(256)])
        sent.append(frame(kind, flags, rng.choice([0, 1, 1, 3, 5, 2]), rng.randbytes(rng.choice([0, 4, 5, 6, 8, 60]))))
    return sent


def noisy_bytes(rng: Random) -> list[bytes]:
    return [START, rng.randbytes(rng.choice([1, 9, 100, 5000]))]


FRAMES: dict[str, Script] = {
    "mutated preface": mutated_preface,
    "no settings": no_settings,
    "wrong lengths": wrong_lengths,
    "oversized frames": oversized_frames,
    "padding": padding,
    "continuation flood": continuation_flood,
    "rapid reset": rapid_reset,
    "window updates": window_updates,
    "odd settings": odd_settings,
    "control flood": control_flood,
    "priorities": priorities,
    "wrong streams": wrong_streams,
    "goaway amid": goaway_amid,
    "odd hpack": odd_hpack,
    "random frames": random_frames,
    "noisy bytes": noisy_bytes,
}
