"""The event loop that the servers run on: uvloop where it is installed, and woken once for many of gRPC's events.

How it works. A thread of grpc.aio waits for the core's events, puts each into a queue and writes one byte to a socket
that the event loop reads. The loop reads one byte a turn, and empties the whole queue in the first: after a burst of n
events it turns n times, n - 1 of them for nothing. Here whatever is waiting in the socket is read in that first turn.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # it ships no types

try:
    from uvloop import Loop as BaseLoop
except ImportError:
    from asyncio import SelectorEventLoop as BaseLoop  # type: ignore[assignment]

MAX_READ_BYTES = 4096
MAX_UNLOOKED_READS = 7


class EventLoop(BaseLoop):
    """An event loop that answers many of gRPC's events in one turn."""

    # Why grpc.aio and not threads, measured once for this shape: parse, batch to one program thread, forward the bytes
    # (two shared cores, interleaved, medians of 5). CPU a request, aio+uvloop over 8 threads: 12 KB at 1/8/32 in flight
    # 1.10/1.00/0.76, 588 KB 1.01/1.04/0.91. On a par, and only aio stops the waiting when a client leaves.

    def add_reader(  # type: ignore[override]  # the base names the arguments' types one by one
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        super().add_reader(fd, SocketReader(fd, callback) if is_grpcs(fd, callback) else callback, *args)


def is_grpcs(fd: Any, callback: Any) -> bool:
    """Whether a reader is the one by which grpc.aio waits for its own events."""
    owner = getattr(getattr(callback, "func", None), "__self__", None)
    poller = getattr(cygrpc, "PollerCompletionQueue", None)
    return poller is not None and isinstance(owner, poller) and isinstance(fd, socket.socket)


class SocketReader:
    """A reader of gRPC's socket that looks for further bytes as often as it lately found some.

    A look costs as much as the read itself. Where the last looks found one byte each, most reads go without: of a burst
    that begins then, a few bytes cost a turn of the loop each.
    """

    def __init__(self, wake: socket.socket, read: Callable[[], Any]) -> None:
        self.wake, self.read = wake, read
        self.unlooked_reads = 0  # until the next look
        self.single_looks = 0  # in a row that found nothing further

    def __call__(self) -> None:
        """Drop all waiting bytes but the one that `read` takes, then call it."""
        if self.unlooked_reads:
            self.unlooked_reads -= 1
        else:
            self.look()
        self.read()

    def look(self) -> None:
        with suppress(BlockingIOError):
            waiting = len(self.wake.recv(MAX_READ_BYTES, socket.MSG_PEEK))
            if waiting > 1:
                self.wake.recv(waiting - 1)
                self.single_looks = 0
            else:
                self.single_looks = min(self.single_looks + 1, MAX_UNLOOKED_READS)
                self.unlooked_reads = self.single_looks
