"""The circuit breaker of a bundle: a broken engine is waited for by no request, and is said to be broken.

How it works. Every inspection ends well or fails. Failures `most_in_a_row`, or on `most_share` of the last
`WINDOW_CHECKS`, make the engine suspect, and the bundle's self-check decides: if it fails too, or the device does
not answer, the breaker opens. From then on requests fail at once with BreakerOpen, those that wait among them, and the
operator's `on_failure` decides on each. The self-check goes on as the probe; once it passes, the breaker closes.

    closed ── too many failures, and the self-check fails ──► open ── the self-check passes ──► closed

Example: the device hangs. Five requests in a row are not inspected within `inspect_timeout_s`; the device has not
answered for as long, so the breaker opens. The sixth request waits no longer.

Rule 1: no client opens it by what it sends: inputs that fail leave the self-check as it was, and the count begins anew.
Rule 2: it opens and closes by `judge` alone, which the watcher of the self-check calls; it makes no input or output.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from guard.errors import BreakerOpen

WINDOW_CHECKS = 100
MIN_WINDOW_CHECKS = 20  # below which no share is told
REMINDER_S = 10.0  # between two events while it is open

BreakerEvent = Literal["breaker open", "breaker still open", "breaker closed"]


class Breaker:
    """The breaker of one engine; `listeners` hear when it opens, that it is still open, and when it closes."""

    def __init__(
        self, *, most_in_a_row: int | None, most_share: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make a closed breaker; without `most_in_a_row` it never opens."""
        self.most_in_a_row = most_in_a_row
        self.most_share = most_share
        self.clock = clock
        self.recent: deque[bool] = deque(maxlen=WINDOW_CHECKS)  # of each of the last inspections: it failed
        self.in_a_row = 0
        self.fault: str | None = None  # of the engine, as last judged
        self.opened_at: float | None = None
        self.stopped = 0  # requests that did not wait since it opened
        self.told_at = 0.0
        self.listeners: list[Callable[[BreakerEvent], None]] = []

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None

    @property
    def is_suspect(self) -> bool:
        """Whether so many inspections failed that the self-check has to decide."""
        if self.most_in_a_row is None:
            return False
        many = len(self.recent) >= MIN_WINDOW_CHECKS and sum(self.recent) >= self.most_share * len(self.recent)
        return many or self.in_a_row >= self.most_in_a_row

    def open_s(self) -> float:
        """The seconds since it opened; 0 while it is closed."""
        return 0.0 if self.opened_at is None else self.clock() - self.opened_at

    def check(self) -> None:
        """Raise BreakerOpen while it is open."""
        if self.is_open:
            self.stopped += 1
            raise self.error()

    def error(self) -> BreakerOpen:
        return BreakerOpen("the guard's engine is out of order, so requests are not inspected; try again later")

    def succeeded(self) -> None:
        """Count an inspection that ended well."""
        self.recent.append(False)
        self.in_a_row = 0

    def failed(self) -> None:
        """Count an inspection that failed."""
        self.recent.append(True)
        self.in_a_row += 1

    def left(self) -> None:
        """Count a client that no longer waits: a failed inspection where the engine is known to be broken."""
        if self.fault is not None:
            self.failed()

    def judge(self, fault: str | None) -> None:
        """Open or close it by why the engine is broken, as the self-check has found just now (None: it is not)."""
        self.fault = fault
        if fault is None:
            self.forgive()
        elif self.is_open:
            if self.clock() - self.told_at >= REMINDER_S:
                self.tell("breaker still open")
        elif self.is_suspect:
            self.opened_at, self.stopped = self.clock(), 0
            self.tell("breaker open")

    def forgive(self) -> None:
        """Begin the count anew where the engine is in order, and close."""
        if self.is_suspect:
            self.recent.clear()
            self.in_a_row = 0
        if self.is_open:
            self.tell("breaker closed")
            self.opened_at = None

    def tell(self, event: BreakerEvent) -> None:
        self.told_at = self.clock()
        for listener in self.listeners:
            listener(event)
