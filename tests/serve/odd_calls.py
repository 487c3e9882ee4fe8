"""gRPC calls that no library makes, over lawful HTTP/2: each a function of a generator, as in `odd_frames`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from random import Random

from tests.serve import tiny_bundle
from tests.serve.frames import (
    FRAME_BYTES,
    PREFACE,
    WINDOW_BYTES,
    block_of,
    continuation,
    data,
    grpc_headers,
    headers,
    message,
    reset,
    settings,
)
from tests.serve.guarded import infer_request
from tests.serve.hpack import Header

Script = Callable[[Random], list[bytes]]  # the pieces of bytes that one connection sends, preface and all

SERVICE = b"/inference.GRPCInferenceService/"
LIVE, INFER = SERVICE + b"ServerLive", SERVICE + b"ModelInfer"
HEALTH = b"/grpc.health.v1.Health/Check"
START = PREFACE + settings()
MAX_STREAMS = 300  # of one connection


@functools.cache
def clean() -> bytes:
    return infer_request(tiny_bundle.ordinary(1)).SerializeToString()


@functools.cache
def suspicious() -> bytes:
    return infer_request(tiny_bundle.bright(1)).SerializeToString()


def noise(rng: Random, most: int) -> bytes:
    return rng.randbytes(rng.randint(1, most))


def blocks(stream: int, fields: list[Header], *, end: bool = False) -> bytes:
    """HEADERS, and CONTINUATION where one frame does not hold them."""
    block = block_of(fields)
    pieces = [block[at : at + FRAME_BYTES] for at in range(0, len(block), FRAME_BYTES)]
    first = headers(stream, pieces[0], end=end, last=len(pieces) == 1)
    return first + b"".join(continuation(stream, piece, last=piece is pieces[-1]) for piece in pieces[1:])


def chunks(stream: int, payload: bytes, *, end: bool = True) -> bytes:
    """DATA, as much of it as a server grants before it has said anything."""
    payload = payload[:WINDOW_BYTES]
    pieces = [payload[at : at + FRAME_BYTES] for at in range(0, len(payload), FRAME_BYTES)] or [b""]
    return b"".join(data(stream, piece, end=end and piece is pieces[-1]) for piece in pieces)


def call(stream: int, path: bytes, body: bytes = b"", *more: Header) -> bytes:
    """A whole unary call."""
    return blocks(stream, grpc_headers(path, *more)) + chunks(stream, message(body))


def lawful(rng: Random) -> list[bytes]:
    body = rng.choice([clean(), suspicious(), b"", clean()[:-1]])
    return [
        START,
        call(1, INFER, body),
        call(3, LIVE),
        call(5, HEALTH),
        call(7, SERVICE + b"ModelMetadata", b"\n\4tiny"),
    ]


def odd_path(rng: Random) -> list[bytes]:
    """Paths that are not UTF-8, not ASCII, not paths, or not short."""
    at = rng.randrange(len(INFER) + 1)
    path = rng.choice(
        [
            INFER[:at] + noise(rng, 3) + INFER[at:],
            b"/x/\xff",
            b"/" + noise(rng, 30),
            SERVICE + bytes([rng.randrange(256)]),
            bytes([rng.randrange(256)]) + INFER,
            b"",
            b"/",
            b"//",
            INFER[1:],
            INFER + b"?x=1",
            INFER + b"/",
            b"http://guard" + INFER,
            b"/inference.GRPCInferenceService\0/ModelInfer",
            INFER + b"\r\nx: y",
            "/inférence/Modèle".encode(),
            "/\ud800/x".encode("utf-8", "surrogatepass"),
            b"/\xc0\xafx/y",  # a slash in two bytes
            b"/" + b"a" * rng.choice([200, 4000, 20_000]),
            b"/" + b"/a" * 2000,
            b"/%ff%00/x",
        ]
    )
    return [START, call(1, path, clean()), call(3, LIVE)]


def odd_header(rng: Random) -> list[bytes]:
    """Names and values with bytes that HTTP does not allow, and names that mean something to a proxy."""
    names = [b"x-name", b"X-Upper", b"", b"x\xff", b"x y", b"x\0", b"x:", b"guard-id", b"guard-verdict", b"x-bin"]
    names += [
        b"grpc-status",
        b"grpc-message",
        b"grpc-trace-bin",
        b"grpc-status-details-bin",
        b"grpc-previous-rpc-attempts",
    ]
    names += [b"connection", b"upgrade", b"transfer-encoding", b"host", b"content-length", b"cookie", b"user-agent"]
    names += [b"keep-alive", b"grpc-encoding", b"grpc-accept-encoding", b"lb-token", b"traceparent", noise(rng, 8)]
    values = [
        b"",
        b"plain",
        b"caf\xe9",
        "café".encode(),
        b"\xff\xfe",
        b"a\0b",
        b"a\r\nb: c",
        b" edge ",
        b"\x7f",
        b"%zz",
    ]
    values += [b"not base64!", b"AAA", b"AAAA,BBBB", b"-1", b"99999999999999999999", noise(rng, 60), b"z" * 3000]
    more = [(rng.choice(names), rng.choice(values)) for _ in range(rng.choice([1, 1, 2, 8]))]
    path = rng.choice([INFER, LIVE, SERVICE + b"ModelMetadata", SERVICE + b"Nobody", HEALTH])
    return [START, call(1, path, clean() if path == INFER else b"", *more), call(3, LIVE)]


def odd_protocol(rng: Random) -> list[bytes]:
    """Values of the headers that gRPC itself reads: method, scheme, content type, te, deadline."""
    odd = {
        b":method": [b"GET", b"PUT", b"post", b"", b"POST\0", noise(rng, 6)],
        b":scheme": [b"https", b"ftp", b"", noise(rng, 6)],
        b":authority": [b"", b"a" * 5000, b"caf\xe9", b"a@b:99999", noise(rng, 20)],
        b"content-type": [
            *(b"application/grpc+proto", b"application/grpc+json", b"application/grpc-web", b"application/json", b""),
            *(b"application/grpc\xff", b"APPLICATION/GRPC", b"application/grpc;x=y", noise(rng, 20)),
        ],
        b"te": [b"gzip", b"", b"trailers\xff", b"Trailers", noise(rng, 8)],
    }
    names = rng.sample(sorted(odd), rng.choice([1, 1, 2]))
    fields = [(name, rng.choice(odd[name]) if name in names else value) for name, value in grpc_headers(INFER)]
    if rng.random() < 0.7:
        fields.append((b"grpc-timeout", timeout(rng)))
    return [START, blocks(1, fields) + chunks(1, message(clean())), call(3, LIVE)]


def timeout(rng: Random) -> bytes:
    return rng.choice(
        [
            *(b"2562047H", b"99999999H", b"0n", b"1n", b"0S", b"-1S", b"", b"S", b"1", b"1X", b"1.5S", b" 1S", b"1 S"),
            *(b"999999999S", b"18446744073709551616n", b"1S\xff", "１S".encode(), b"0x1S", noise(rng, 9)),
        ]
    )


def far_deadline(rng: Random) -> list[bytes]:
    return [START, call(1, rng.choice([INFER, LIVE]), clean(), (b"grpc-timeout", timeout(rng)))]


def pseudo_headers(rng: Random) -> list[bytes]:
    """Pseudo headers that are missing, doubled, late, or of a response."""
    fields = grpc_headers(INFER)
    for _ in range(rng.randint(1, 3)):
        change, at = rng.randrange(5), rng.randrange(len(fields))
        if change == 0 and len(fields) > 1:
            del fields[at]
        elif change == 1:
            fields.insert(rng.randrange(len(fields) + 1), fields[at])
        elif change == 2:
            rng.shuffle(fields)
        elif change == 3:
            fields.append((b":path", LIVE))
        else:
            fields.insert(at, (rng.choice([b":status", b":protocol", b":x", b":", b":PATH"]), b"200"))
    return [START, blocks(1, fields) + chunks(1, message(clean())), call(3, LIVE)]


def huge_metadata(rng: Random) -> list[bytes]:
    """As much as a server takes (8 to 16 KiB), and more."""
    if rng.random() < 0.5:
        more = [(b"x-large", b"v" * rng.choice([1_000, 8_100, 16_300, 60_000, 300_000]))]
    else:
        more = [(b"x-%d" % number, b"") for number in range(rng.choice([100, 250, 2_000, 10_000]))]
    path = rng.choice([INFER, LIVE, SERVICE + b"ModelMetadata"])
    return [START, call(1, path, clean(), *more), call(3, LIVE)]


def half_open(rng: Random) -> list[bytes]:
    """Calls whose message does not come, or not whole."""
    sent, body = [START], message(clean())
    for stream in range(1, 2 * rng.choice([1, 20, MAX_STREAMS]), 2):
        sent.append(blocks(stream, grpc_headers(rng.choice([INFER, LIVE]))))
        sent.append(data(stream, body[: rng.randrange(len(body))]) if rng.random() < 0.7 else b"")
    return [sent[0], b"".join(sent[1:])]


def trailers(rng: Random) -> list[bytes]:
    """Trailers from a client, lawful and not."""
    fields = [(rng.choice([b"grpc-status", b"x-trailer", b":path", b"te"]), rng.choice([b"0", b"99", b"\xff", b""]))]
    end = headers(1, block_of(fields), end=rng.random() < 0.8)
    body = message(clean())
    return [START, headers(1, block_of(grpc_headers(INFER))), data(1, body[: rng.choice([len(body), 9, 0])]), end, end]


def no_message(rng: Random) -> list[bytes]:
    """A unary call that ends without its message."""
    path = rng.choice([INFER, LIVE, SERVICE + b"ModelMetadata", HEALTH])
    ended = rng.choice(
        [headers(1, block_of(grpc_headers(path)), end=True), call(1, path)[: -len(data(1, message(b"")))]]
    )
    return [START, ended, data(1, b"", end=True), call(3, LIVE)]


def many_calls(rng: Random) -> list[bytes]:
    """Calls at once, some of them taken back while they run."""
    sent = []
    for stream in range(1, 2 * rng.choice([20, MAX_STREAMS]), 2):
        sent.append(call(stream, rng.choice([INFER, INFER, LIVE]), clean())[: None if rng.random() < 0.9 else -3])
        sent.append(reset(stream) if rng.random() < 0.3 else b"")
    return [START, b"".join(sent)]


CALLS: dict[str, Script] = {
    "lawful": lawful,
    "odd path": odd_path,
    "odd header": odd_header,
    "odd protocol": odd_protocol,
    "far deadline": far_deadline,
    "pseudo headers": pseudo_headers,
    "huge metadata": huge_metadata,
    "half open": half_open,
    "trailers": trailers,
    "no message": no_message,
    "many calls": many_calls,
}
