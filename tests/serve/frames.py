"""HTTP/2 frames by hand, lawful or not, and a client that speaks gRPC with nothing else.

How it works: every function above `Wire` makes bytes and checks nothing. `Wire` sends bytes whatever they are, reads
while it sends, keeps what came of each stream, and answers SETTINGS and PING unless it is told to be impolite. Only
`Wire.body` minds what the server granted.

    wire = Wire("127.0.0.1:8081")
    stream = wire.open(grpc_headers(b"/inference.GRPCInferenceService/ServerLive"))
    wire.body(stream, message(b""))
    wire.answer(stream).status                        0: OK
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from tests.serve.hpack import Decoder, Header, HpackError, literal

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 0x1, 0x1, 0x4, 0x8, 0x20  # flags; ACK is of SETTINGS and PING
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADERS = range(1, 7)  # settings
NO_ERROR, PROTOCOL_ERROR, CANCEL = 0, 1, 8  # error codes
WINDOW_BYTES, FRAME_BYTES, FRAME_HEADER_BYTES = 65_535, 16_384, 9
CHUNK_BYTES = 65_536


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """Any frame; `length` is what its header says where that is to be a lie."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def padded(payload: bytes, padding: int | None) -> bytes:
    return payload if padding is None else bytes([padding]) + payload + bytes(padding)


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in pairs))


def headers(stream: int, block: bytes, *, end: bool = False, last: bool = True, padding: int | None = None) -> bytes:
    """`last`: no CONTINUATION follows; `end`: no DATA does."""
    flags = END_STREAM * end | END_HEADERS * last | PADDED * (padding is not None)
    return frame(HEADERS, flags, stream, padded(block, padding))


def continuation(stream: int, block: bytes, *, last: bool = True) -> bytes:
    return frame(CONTINUATION, END_HEADERS * last, stream, block)


def data(stream: int, payload: bytes, *, end: bool = False, padding: int | None = None) -> bytes:
    return frame(DATA, END_STREAM * end | PADDED * (padding is not None), stream, padded(payload, padding))


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def goaway(last_stream: int, code: int = NO_ERROR, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + debug)


def ping(opaque: bytes = bytes(8), *, ack: bool = False) -> bytes:
    return frame(PING, ACK * ack, 0, opaque)


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def priority(stream: int, depends: int, weight: int, *, exclusive: bool = False) -> bytes:
    return frame(PRIORITY, 0, stream, struct.pack(">IB", depends | exclusive << 31, weight))


def block_of(fields: Iterable[Header], *, huffman: bool = False) -> bytes:
    return b"".join(literal(name, value, huffman=huffman) for name, value in fields)


def grpc_headers(path: bytes, *more: Header) -> list[Header]:
    """What a gRPC client sends first."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"guard"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *more,
    ]


def message(body: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """One gRPC message in its five-byte frame; `flag` 1: compressed; `length`: where it is to be a lie."""
    return struct.pack(">BI", flag, len(body) if length is None else length) + body


@dataclass
class Answer:
    """What came on one stream, as far as it came."""

    headers: list[Header] = field(default_factory=list)  # initial and trailing, in order
    body: bytes = b""
    ended: bool = False  # by the server, in order
    reset: int | None = None  # its error code
    goaway: int | None = None  # the connection's error code
    closed: bool = False  # the connection

    @property
    def done(self) -> bool:
        return self.ended or self.reset is not None or self.closed

    @property
    def status(self) -> int | None:
        """The gRPC status."""
        found = [value for name, value in self.headers if name == b"grpc-status"]
        return int(found[-1]) if found else None

    @property
    def details(self) -> str:
        found = [value for name, value in self.headers if name == b"grpc-message"]
        return unquote(found[-1].decode(errors="replace")) if found else ""


class Wire:
    """One connection. Nothing raises but a refused connection: what went wrong stands in the answers."""

    def __init__(
        self, address: str, *, polite: bool = True, greeting: bytes | None = None, patience_s: float = 5.0
    ) -> None:
        """`greeting` is what is sent first, preface and SETTINGS unless given. Raises OSError."""
        host, _, port = address.rpartition(":")
        self.patience_s = patience_s
        self.polite = polite
        self.socket = socket.create_connection((host, int(port)), timeout=patience_s)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.next_stream = 1
        self.answers: dict[int, Answer] = {}
        self.greeted = False  # the server's SETTINGS came
        self.closed = False
        self.goaway: int | None = None
        self.windows = {0: WINDOW_BYTES}  # what may be sent, on the connection and on each stream
        self.first_window, self.frame_bytes = WINDOW_BYTES, FRAME_BYTES
        self.decoder = Decoder()
        self.unread, self.block, self.replies = bytearray(), b"", b""
        self.send(PREFACE + settings() if greeting is None else greeting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, *, abort: bool = False) -> None:
        """End the connection; `abort`: with a TCP reset instead of an end."""
        if abort:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        self.closed = True

    # sending

    def send(self, sent: bytes) -> None:
        """Send the bytes as they are, and read what comes meanwhile; neither side's full buffer can stop it."""
        left = memoryview(self.replies + sent)
        self.replies = b""
        deadline = time.monotonic() + self.patience_s
        while left and not self.closed and (rest := deadline - time.monotonic()) > 0:
            readable, writable, _ = select.select([self.socket], [self.socket], [], rest)
            if readable:
                self.receive()
            if writable and not self.closed:
                try:
                    left = left[self.socket.send(left[:CHUNK_BYTES]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    self.closed = True

    def open(self, fields: Sequence[Header], *, end: bool = False) -> int:
        """Open a call with these headers, whatever bytes they hold; its stream."""
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        block = block_of(fields)
        first, rest = block[: self.frame_bytes], block[self.frame_bytes :]
        pieces = [headers(stream, first, end=end, last=not rest)]
        while rest:
            piece, rest = rest[: self.frame_bytes], rest[self.frame_bytes :]
            pieces.append(continuation(stream, piece, last=not rest))
        self.windows[stream] = self.first_window
        self.answer_of(stream)
        self.send(b"".join(pieces))
        return stream

    def body(self, stream: int, payload: bytes, *, end: bool = True) -> None:
        """Send DATA no faster than the server's windows allow; what does not fit in time is not sent."""
        deadline = time.monotonic() + self.patience_s
        while payload and not self.answer_of(stream).done:
            room = min(self.windows[0], self.windows[stream], self.frame_bytes)
            if room <= 0:
                if not self.wait(lambda: min(self.windows[0], self.windows[stream]) > 0, deadline):
                    return
                continue
            piece, payload = payload[:room], payload[room:]
            self.windows[0] -= len(piece)
            self.windows[stream] -= len(piece)
            self.send(data(stream, piece, end=end and not payload))
            if end and not payload:
                return
        if end:
            self.send(data(stream, b"", end=True))

    # receiving

    def answer(self, stream: int, patience_s: float | None = None) -> Answer:
        """What came on the stream, once that is all or the time is up."""
        limit = self.patience_s if patience_s is None else patience_s
        self.wait(lambda: self.answer_of(stream).done, time.monotonic() + limit)
        found = self.answer_of(stream)
        found.goaway = self.goaway
        return found

    def answer_of(self, stream: int) -> Answer:
        found = self.answers.setdefault(stream, Answer())
        found.closed |= self.closed
        return found

    def wait(self, holds: Callable[[], bool], deadline: float) -> bool:
        """Read on until `holds`, the connection's end or the deadline; whether it held."""
        while not holds() and not self.closed and (rest := deadline - time.monotonic()) > 0:
            if select.select([self.socket], [], [], rest)[0]:
                self.receive()
            if self.replies:
                self.send(b"")
        return holds()

    def receives(self, patience_s: float) -> bool:
        """Whether anything comes within that time; it is read."""
        if self.closed or patience_s <= 0 or not select.select([self.socket], [], [], patience_s)[0]:
            return False
        self.receive()
        self.send(b"")
        return True

    def receive(self) -> None:
        """Read what is there, and take in every frame of it that is complete."""
        try:
            came = self.socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        self.closed |= not came
        self.unread += came
        while len(self.unread) >= FRAME_HEADER_BYTES:
            end = FRAME_HEADER_BYTES + int.from_bytes(self.unread[:3], "big")
            if len(self.unread) < end:
                return
            kind, flags, stream = struct.unpack(">BBI", self.unread[3:FRAME_HEADER_BYTES])
            payload = bytes(self.unread[FRAME_HEADER_BYTES:end])
            del self.unread[:end]
            self.take(kind, flags, stream & 0x7FFFFFFF, payload)

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self.greeted = True
            self.granted(payload)
            self.reply(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.reply(ping(payload, ack=True))
        elif kind == WINDOW_UPDATE:
            self.windows[stream] = self.windows.get(stream, self.first_window) + int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif kind == RST_STREAM:
            self.answer_of(stream).reset = int.from_bytes(payload, "big")
        elif kind == DATA:
            self.answer_of(stream).body += unpadded(flags, payload)
            if payload:
                self.reply(window_update(0, len(payload)) + window_update(stream, len(payload)))
        elif kind in (HEADERS, CONTINUATION):
            self.block += unpadded(flags, payload)[5 * bool(flags & PRIORITISED) :] if kind == HEADERS else payload
            if flags & END_HEADERS:
                self.take_block(stream)
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self.answer_of(stream).ended = True

    def take_block(self, stream: int) -> None:
        block, self.block = self.block, b""
        try:
            self.answer_of(stream).headers += self.decoder.fields(block)
        except HpackError:
            self.closed = True  # nothing after it can be read

    def granted(self, payload: bytes) -> None:
        for key, value in struct.iter_unpack(">HI", payload):
            if key == INITIAL_WINDOW:
                for stream in self.windows.keys() - {0}:
                    self.windows[stream] += value - self.first_window
                self.first_window = value
            elif key == MAX_FRAME:
                self.frame_bytes = value

    def reply(self, sent: bytes) -> None:
        if self.polite:
            self.replies += sent


def unpadded(flags: int, payload: bytes) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & PADDED and payload else payload


def unary(address: str, path: bytes, body: bytes = b"", *more: Header, patience_s: float = 5.0) -> Answer:
    """One call on a connection of its own. Raises OSError where none can be made."""
    with Wire(address, patience_s=patience_s) as wire:
        stream = wire.open(grpc_headers(path, *more))
        wire.body(stream, message(body))
        return wire.answer(stream)
