"""A thread beside the requests that carries out slow writes, from a queue that is bounded in bytes.

Rule 1: `submit` never waits and never fails: what finds no room is dropped, and counted by its reason.
Rule 2: nothing that a write does, not even a hang, reaches a request or holds up the end of the process.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from guard.audit_log import DISK_FULL

CLOSING_S = 1.0  # how long the end waits for what was taken


class Background:
    """A queue of writes and the thread that carries them out, in order."""

    def __init__(
        self,
        name: str,
        *,
        max_waiting_bytes: int,
        lost: Callable[[str, int], None],
        idle: Callable[[], None] | None = None,
        idle_s: float | None = None,
    ) -> None:
        """Start the thread. `lost` is told of reasons and numbers; `idle` runs on it every `idle_s` and at its end."""
        self.max_waiting_bytes, self.lost, self.idle, self.idle_s = max_waiting_bytes, lost, idle, idle_s
        self.waiting: deque[tuple[int, int, Callable[[], None]]] = deque()
        self.waiting_bytes = 0  # of those that wait and of the one under way
        self.closed = False
        self.changed = threading.Condition()
        # a daemon: where a disk or a sink hangs, the process ends all the same
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)
        self.thread.start()

    def submit(self, size_bytes: int, work: Callable[[], None], *, count: int = 1) -> bool:
        """Take a write of `count` things, which holds `size_bytes` while it waits; False where it was dropped."""
        with self.changed:
            taken = not self.closed and self.waiting_bytes + size_bytes <= self.max_waiting_bytes
            if taken:
                self.waiting.append((size_bytes, count, work))
                self.waiting_bytes += size_bytes
                self.changed.notify()
        if not taken:
            self.lost("queue_full", count)
        return taken

    def run(self) -> None:
        due = None if self.idle_s is None else time.monotonic() + self.idle_s
        while True:
            patience_s = None if due is None else max(0.0, due - time.monotonic())
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed, patience_s)
                job = self.waiting.popleft() if self.waiting else None
                over = self.closed and job is None
            if job is not None:
                self.carry_out(*job[1:])
                with self.changed:
                    self.waiting_bytes -= job[0]
                    self.changed.notify_all()
            if over or (due is not None and time.monotonic() >= due):
                if self.idle is not None:
                    self.carry_out(0, self.idle)
                due = None if self.idle_s is None else time.monotonic() + self.idle_s
            if over:
                return

    def carry_out(self, count: int, work: Callable[[], None]) -> None:
        """Carry out a write; whatever becomes of it, the thread goes on."""
        try:
            work()
        except Exception as error:  # noqa: BLE001  whatever it is, requests must not notice
            self.lost(reason_of(error), count)

    def close(self, patience_s: float = CLOSING_S) -> None:
        """Take nothing more, and wait for what was taken, at most so long; what waits longer is lost."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join(patience_s)
        with self.changed:
            left = sum(count for _, count, _ in self.waiting)
            self.waiting.clear()
        if left:
            self.lost("closed", left)


class Dropped(Exception):
    """A write whose content is lost, for a reason that is counted."""

    def __init__(self, reason: str) -> None:
        """Name the reason, a label of the metric."""
        super().__init__(reason)
        self.reason = reason


def reason_of(error: Exception) -> str:
    """The reason of a lost write, as it is counted."""
    if isinstance(error, Dropped):
        return error.reason
    return "disk_full" if isinstance(error, OSError) and error.errno in DISK_FULL else "error"
