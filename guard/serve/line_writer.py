"""Writes lines to a file descriptor from a thread of its own: a stalled reader costs lines, and no time.

Standard error is most often a pipe. Once its reader stalls and it is full, a write waits: in the event loop, that would
hold every client's call.

Rule 1: `write` never waits, and never fails, whatever became of the reader.
Rule 2: nor does anything else in the process that writes to that descriptor, as gRPC's core does: for the others it is
made non-blocking, and what finds no room is theirs to lose.
Rule 3: what waits is bounded in bytes; a text that finds no room is dropped whole, and its writer is told.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

STANDARD_ERROR_CODE = 2  # of the descriptor
MAX_WAITING_BYTES = 1 << 20
CLOSING_S = 1.0  # how long the end waits for a reader


class LineWriter:
    """A writer of text to a file descriptor that never makes its caller wait."""

    def __init__(self, descriptor: int, *, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self.descriptor = descriptor
        self.max_waiting_bytes = max_waiting_bytes
        self.waiting: deque[bytes] = deque()  # the first is being written
        self.waiting_bytes = 0
        self.closed = False
        self.changed = threading.Condition()
        # a daemon: where the reader never comes back, the process ends all the same
        self.thread = threading.Thread(target=self.run, name="log", daemon=True)
        self.thread.start()

    def write(self, text: str) -> int:
        """Take a text to be written; return how many characters were taken, all of them or none."""
        data = text.encode("utf-8", errors="backslashreplace")
        with self.changed:
            if self.closed or self.waiting_bytes + len(data) > self.max_waiting_bytes:
                return 0
            self.waiting.append(data)
            self.waiting_bytes += len(data)
            self.changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: what waits is written at once, by the thread."""

    def close(self, patience_s: float = CLOSING_S) -> None:
        """Take nothing more, and wait for what was taken to be written, at most so long."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.waiting, patience_s)

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if not self.waiting:
                    return
                data = self.waiting[0]
            self.write_out(data)
            with self.changed:
                self.waiting.popleft()
                self.waiting_bytes -= len(data)
                self.changed.notify_all()

    def write_out(self, data: bytes) -> None:
        """Write all of it, however long the reader takes; what cannot be read (no reader, a full disk) is lost."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:  # somebody else made the descriptor non-blocking
                select.select([], [self.descriptor], [])
            except OSError:
                return


@contextmanager
def line_writer(descriptor: int) -> Iterator[LineWriter]:
    """Open a writer for the block, in which no write to the descriptor waits; at the end what was taken may be read."""
    own = os.dup(descriptor)
    writer = LineWriter(own)
    put_back = unblock(descriptor, own)
    try:
        yield writer
    finally:
        put_back()
        writer.close()
        if not writer.waiting:
            writer.thread.join()
            os.close(own)


def unblock(descriptor: int, own: int) -> Callable[[], None]:
    """Make writes to a pipe, terminal or socket fail at once where they would wait; return what undoes that.

    `own` is a copy of the descriptor. A pipe or terminal is opened anew, so that others who hold it, such as the shell,
    notice nothing; where that is not allowed (a container's pipe belongs to its runtime), it is changed for all.
    """
    kind = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(descriptor)):
        return lambda: None
    try:
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        before = os.get_blocking(descriptor)
        os.set_blocking(descriptor, False)
        return partial(os.set_blocking, own, before)
    os.dup2(again, descriptor)
    os.close(again)

    def put_back() -> None:
        os.dup2(own, descriptor)

    return put_back
