"""Sheds at the door what could not be answered within its deadline: work on it would be lost, and others' with it.

How it works. Calls that are being inspected leave at some rate, which is measured while there are any. By Little's law
one that comes now will be inspected after (calls inside + 1) / rate; to that the time is added that the model server
lately took. If more than `SHARE` of what is left until the deadline would be spent so, the call is refused before its
message is read. Example: 20 inside, 400 a second, 5 ms upstream: 57 ms. A call with 250 ms left comes in, one with
50 ms is told to go elsewhere.

Rule 1: an idle guard sheds nothing: `ALWAYS_INSIDE` calls are let in whatever was measured, and so mend what was.
Rule 2: a place that was taken is left, once, whatever becomes of its call.
Rule 3: no queue, no input and output; who enters tells the time.
"""

from __future__ import annotations

import time

from guard.errors import Overloaded

SHARE = 0.6  # of the time left that may be spent, as far as it can be foreseen
ALWAYS_INSIDE = 4
MEMORY_S = 0.5  # of busy time over which the rate is remembered
UPSTREAM_WEIGHT = 0.1  # of the newest answer in the mean of the model server's


class Place:
    """One call's place among those that are being inspected."""

    def __init__(self, admission: Admission) -> None:
        self.admission: Admission | None = admission

    def leave(self, now: float, *, inspected: bool) -> None:
        """Make room for the next, the inspection done or given up; a second time is none."""
        if self.admission is not None:
            self.admission.left(now, inspected=inspected)
            self.admission = None

    def tear(self) -> None:
        """The call is over."""
        self.leave(time.monotonic(), inspected=False)


class Admission:
    """How many calls are being inspected, and how fast they leave."""

    def __init__(self) -> None:
        self.inside = 0
        self.upstream_s = 0.0
        self.busy_s = 0.0  # this and the departures decay together, so that their ratio is a rate of late
        self.departures = 0.0
        self.updated = 0.0

    def enter(self, now: float, remaining_s: float) -> Place:
        """A place for a call. Raises Overloaded where it could not leave in time."""
        self.update(now)
        expected = self.expected_s()
        if self.inside >= ALWAYS_INSIDE and expected > SHARE * remaining_s:
            raise Overloaded(
                f"{self.inside} requests are being inspected, and another would take about {expected:.2g} s of the "
                f"{remaining_s:.2g} s that it has left; try again later or elsewhere"
            )
        self.inside += 1
        return Place(self)

    def left(self, now: float, *, inspected: bool) -> None:
        self.update(now)
        self.inside -= 1
        if inspected:
            self.departures += 1.0

    def forwarded(self, seconds: float) -> None:
        """The model server took so long over an answer."""
        self.upstream_s += UPSTREAM_WEIGHT * (seconds - self.upstream_s)

    def expected_s(self) -> float:
        """How long a call that comes now will take."""
        waiting = (self.inside + 1) * self.busy_s / self.departures if self.departures else 0.0
        return waiting + self.upstream_s

    def update(self, now: float) -> None:
        passed = now - self.updated
        self.updated = now
        if self.inside > 0 and passed > 0:
            kept = max(0.0, 1.0 - passed / MEMORY_S)
            self.busy_s = self.busy_s * kept + passed
            self.departures *= kept
