"""Clients whose HTTP/2 is lawful, by a library that minds every window and table, and whose gRPC is odd.

Each takes the guard's address and a generator, and gives back the client with what came. The library is PyPI's `h2`.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from tests.serve import tiny_bundle
from tests.serve.frames import CANCEL, CHUNK_BYTES, NO_ERROR, Answer, grpc_headers, message
from tests.serve.guarded import infer_request
from tests.serve.hpack import Header
from tests.serve.odd_calls import HEALTH, INFER, LIVE, SERVICE, clean, noise, suspicious
from tests.side import reach

reach("h2")

from h2 import events  # noqa: E402
from h2.config import H2Configuration  # noqa: E402
from h2.connection import H2Connection  # noqa: E402
from h2.exceptions import ProtocolError  # noqa: E402
from h2.settings import SettingCodes  # noqa: E402

PATIENCE_S = 2.0  # of a whole session: a server that grants nothing more ends it
MOST_STREAMS = 60
LARGE_ITEMS = (100, 2_000, 40_000)  # 64 bytes each


class Client:
    """One connection by h2; `answers`, `goaway` and `closed` as of `frames.Wire`."""

    def __init__(self, address: str, **initial: int) -> None:
        """`initial` is of the SETTINGS that it sends first. Raises OSError."""
        host, _, port = address.rpartition(":")
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None
        self.closed = self.broken = False
        self.credit = True  # grants the server as much as it sent
        self.deadline = time.monotonic() + PATIENCE_S
        self.http = H2Connection(H2Configuration(header_encoding=False, validate_outbound_headers=False))
        self.http.local_settings.update({SettingCodes[name]: value for name, value in initial.items()})
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        self.socket.setblocking(False)
        self.http.initiate_connection()
        self.flush()

    def open(self, path: bytes, *more: Header, end: bool = False) -> int:
        stream: int = self.http.get_next_available_stream_id()
        self.answers[stream] = Answer()
        self.try_to(self.http.send_headers, stream, grpc_headers(path, *more), end_stream=end)
        return stream

    def body(
        self, stream: int, payload: bytes, *, end: bool = True, chunk: int = 16_384, padding: int | None = None
    ) -> None:
        """DATA in chunks, each as soon as it is granted."""
        while payload and self.pump(lambda: self.room(stream, padding) > 0) and not self.answers[stream].done:
            size = min(chunk, self.room(stream, padding))
            self.try_to(self.http.send_data, stream, payload[:size], pad_length=padding)
            payload = payload[size:]
        if end and not payload and not self.answers[stream].done:
            self.try_to(self.http.end_stream, stream)

    def room(self, stream: int, padding: int | None = None) -> int:
        """Bytes that may be sent now beside their padding; on a stream that is over, any number."""
        if self.answers[stream].done:
            return 1
        extra = 0 if padding is None else padding + 1
        try:
            window = self.http.local_flow_control_window(stream)
        except ProtocolError:
            return 1
        return min(window, self.http.max_outbound_frame_size) - extra

    def try_to(self, act: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Do it, unless the server has ended what it is about meanwhile."""
        try:
            act(*arguments, **options)
        except ProtocolError:
            return
        self.flush()

    def flush(self) -> None:
        left = memoryview(self.http.data_to_send())
        while left and not self.closed and (rest := self.deadline - time.monotonic()) > 0:
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

    def pump(self, holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
        """Read on until `holds`, the end of the connection or of the time; whether it held."""
        deadline = min(self.deadline, time.monotonic() + patience_s)
        self.flush()
        while not holds() and not self.closed and (rest := deadline - time.monotonic()) > 0:
            if select.select([self.socket], [], [], rest)[0]:
                self.receive()
                self.flush()
        return holds() and not self.closed

    def receive(self) -> None:
        try:
            came = self.socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        self.closed |= not came
        try:
            for event in self.http.receive_data(came):
                self.take(event)
        except ProtocolError:
            self.broken = self.closed = True  # the server's own HTTP/2 is not lawful

    def take(self, event: Any) -> None:
        if isinstance(event, events.ConnectionTerminated):
            self.goaway = int(event.error_code)
            return
        answer = self.answers.setdefault(getattr(event, "stream_id", 0) or 0, Answer())
        if isinstance(event, events.ResponseReceived | events.TrailersReceived):
            answer.headers += event.headers
        elif isinstance(event, events.DataReceived):
            answer.body += event.data
            if self.credit and event.flow_controlled_length:
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, events.StreamEnded):
            answer.ended = True
        elif isinstance(event, events.StreamReset):
            answer.reset = int(event.error_code)

    def settle(self, patience_s: float = 0.25) -> None:
        """Wait for every answer."""
        self.pump(lambda: all(answer.done for stream, answer in self.answers.items() if stream), patience_s)

    def close(self, *, orderly: bool = True) -> None:
        if orderly and not self.closed:
            self.try_to(self.http.close_connection)
        self.socket.close()
        self.closed = True


def interleaved(address: str, rng: Random) -> Client:
    """Bodies of many calls in turns, in chunks and padding of any size."""
    client = Client(address)
    paddings = [None, 0, 200] if rng.random() < 0.1 else [None]  # gRPC's C core takes no padded DATA
    left = {client.open(rng.choice([INFER, LIVE])): message(clean()) for _ in range(rng.randint(2, MOST_STREAMS))}
    while left:
        stream = rng.choice(list(left))
        size = rng.choice([1, 7, 40, 1000])
        piece, left[stream] = left[stream][:size], left[stream][size:]
        client.body(stream, piece, end=not left[stream], padding=rng.choice(paddings))
        if not left[stream]:
            del left[stream]
    client.settle()
    return client


def unread_answers(address: str, rng: Random) -> Client:
    """A client that grants the server nothing: answers stay where they are, then come byte by byte, or never."""
    client = Client(address, INITIAL_WINDOW_SIZE=0)
    client.credit = False
    for _ in range(rng.randint(1, MOST_STREAMS)):
        client.body(client.open(rng.choice([INFER, LIVE])), message(clean()))
    client.pump(lambda: False, 0.03)
    if rng.random() < 0.5:
        for stream in list(client.answers):
            for _ in range(rng.choice([1, 5]) if stream else 0):
                client.try_to(client.http.increment_flow_control_window, rng.choice([1, 1, 2**20]), stream)
        client.pump(lambda: False, 0.02)
    return client


def large_bodies(address: str, rng: Random) -> Client:
    """Bodies beyond every first window, some more than the guard takes; some end early."""
    client = Client(address)
    body = message(
        infer_request(np.repeat(tiny_bundle.ordinary(1), rng.choice(LARGE_ITEMS), axis=0)).SerializeToString()
    )
    for _ in range(rng.choice([1, 2, 4])):
        stream = client.open(INFER)
        client.body(stream, body, end=rng.random() < 0.7)
        if rng.random() < 0.2:
            client.try_to(client.http.reset_stream, stream, rng.choice([NO_ERROR, CANCEL]))
    client.settle()
    return client


def resets(address: str, rng: Random) -> Client:
    """Calls that are taken back at any point of their message, or after it."""
    client = Client(address)
    for _ in range(rng.randint(1, MOST_STREAMS)):
        stream, body = client.open(rng.choice([INFER, LIVE])), message(rng.choice([clean(), suspicious()]))
        cut = rng.randrange(len(body) + 1)
        client.body(stream, body[:cut], end=cut == len(body))
        client.pump(lambda: False, rng.choice([0, 0, 0.002]))
        client.try_to(client.http.reset_stream, stream, rng.choice([NO_ERROR, CANCEL, 0xD]))
    return client


def table_games(address: str, rng: Random) -> Client:
    """Header tables that grow, shrink and are filled, with Huffman texts and values of any byte."""
    client = Client(address, HEADER_TABLE_SIZE=rng.choice([0, 4096, 65_536]))
    for _ in range(rng.randint(1, 20)):
        client.http.encoder.header_table_size = rng.choice([0, 100, 4096])
        names = [b"x-%d" % rng.randrange(9), b"x-name", b"x-long"]
        more = [
            (rng.choice(names), rng.choice([b"a" * 500, noise(rng, 40), b"caf\xe9"])) for _ in range(rng.randint(0, 5))
        ]
        client.body(client.open(rng.choice([INFER, LIVE, HEALTH]), *more), message(clean()))
    client.settle()
    return client


def wrong_counts(address: str, rng: Random) -> Client:
    """No message, several, or trailers after it, of methods that take one; bodies that end with an empty frame."""
    client = Client(address)
    for _ in range(rng.randint(1, 10)):
        path = rng.choice([INFER, LIVE, SERVICE + b"ModelMetadata", SERVICE + b"ModelStreamInfer", HEALTH])
        stream = client.open(path, end=rng.random() < 0.1)
        client.body(stream, message(clean()) * rng.choice([0, 1, 2, 50]), end=False)
        fields = [(rng.choice([b"grpc-status", b"x-trailer"]), rng.choice([b"0", b"7", noise(rng, 5)]))]
        if rng.random() < 0.5:
            client.try_to(client.http.send_headers, stream, fields, end_stream=True)
        else:
            client.try_to(client.http.end_stream, stream)
    client.settle()
    return client


def leaves(address: str, rng: Random) -> Client:
    """A connection that says goodbye, or not, with its calls under way."""
    client = Client(address)
    for _ in range(rng.randint(1, MOST_STREAMS)):
        client.body(client.open(INFER), message(clean()), end=rng.random() < 0.7)
    client.close(orderly=rng.random() < 0.5)
    return client


CLIENTS: dict[str, Callable[[str, Random], Client]] = {
    "interleaved": interleaved,
    "unread answers": unread_answers,
    "large bodies": large_bodies,
    "resets": resets,
    "table games": table_games,
    "wrong counts": wrong_counts,
    "leaves": leaves,
}
