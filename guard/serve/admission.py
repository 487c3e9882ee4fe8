"""Sheds at the door what could not be answered within its deadline: work on it would be lost, and others' with it.

How it works. Calls that were inspected lately took `stay_s`, among `company` others. One that comes now finds `inside`
others, and each more than then delays it by what one takes where the guard is at its best: it will take
stay_s + (inside - company) / best_rate, and then what the model server lately took. If that is more than `SHARE` of
what is left until its deadline, it does not come in, and its message is not read. Example: 12 ms among 5, now 21
inside, at best 800 a second, 5 ms upstream: 12 + 16 / 0.8 + 5 = 37 ms. A call with 250 ms left comes in, one with 50
does not.

A rate measured at the door alone would not do: few let in is few that leave, and so few that are let in.

Rule 1: an idle guard sheds nothing, whatever was measured before.
Rule 2: a place that was taken is left, once, whatever becomes of its call.
Rule 3: no queue, no input and output; who enters tells the time.
"""

from __future__ import annotations

import time

from guard.errors import Overloaded

CROWDED = "too many requests are being inspected for another to be answered in time; try again later or elsewhere"
SHARE = 0.85  # of the time left that may be spent, as far as it can be foreseen
FEWEST_INSIDE = 128  # calls, before any has to wait outside
INSIDE_S = 0.5  # of work, at the best rate
NEWEST_WEIGHT = 0.1  # of the newest call in a mean
RATE_WINDOW_S = 0.25  # of busy time over which departures are counted
FEWEST_DEPARTURES = 10  # that tell a rate before the first window is over
RATE_KEPT = 0.98  # of the best rate after a window that was worse


class Place:
    """One call's place among those that are being inspected."""

    def __init__(self, admission: Admission, now: float) -> None:
        self.admission: Admission | None = admission
        self.entered = now
        self.company = admission.inside

    def leave(self, now: float, *, inspected: bool) -> None:
        """Make room for the next, the inspection done or given up; a second time is none."""
        if self.admission is not None:
            self.admission.left(self, now, inspected=inspected)
            self.admission = None

    def tear(self) -> None:
        """The call is over."""
        self.leave(time.monotonic(), inspected=False)


class Admission:
    """How many calls are being inspected, how long each takes, and how fast they leave at best.

    Whoever gives up leaves as well: a client that takes its calls back must not make the guard seem slow to others.
    """

    def __init__(self) -> None:
        self.inside = 0
        self.stay_s = self.company = self.upstream_s = 0.0  # means of late
        self.best_rate = 0.0  # calls a second
        self.updated = self.busy_s = 0.0
        self.departures = 0  # in this window

    def enter(self, now: float, remaining_s: float) -> Place:
        """A place for a call. Raises Overloaded where it could not leave in time."""
        self.update(now)
        if not self.is_in_time(remaining_s):
            raise Overloaded(CROWDED)
        self.inside += 1
        return Place(self, now)

    def left(self, place: Place, now: float, *, inspected: bool) -> None:
        self.update(now)
        self.inside -= 1
        self.departures += 1
        if inspected:
            self.stay_s += NEWEST_WEIGHT * (now - place.entered - self.stay_s)
            self.company += NEWEST_WEIGHT * (place.company - self.company)

    def forwarded(self, seconds: float) -> None:
        """The model server took so long over an answer."""
        self.upstream_s += NEWEST_WEIGHT * (seconds - self.upstream_s)

    def has_room(self) -> bool:
        """Whether more inside could keep the guard busier; if not, who waits outside loses nothing by it."""
        return self.inside < max(FEWEST_INSIDE, INSIDE_S * self.best_rate)

    def is_in_time(self, remaining_s: float, ahead: int = 0) -> bool:
        """Whether a call with so much time left can be answered, where `ahead` others come in before it."""
        return remaining_s > 0 and (not self.inside + ahead or self.expected_s(ahead) <= SHARE * remaining_s)

    def expected_s(self, ahead: int = 0) -> float:
        """How long a call that comes now will take, `ahead` others before it."""
        rate = self.best_rate or (self.departures / self.busy_s if self.departures >= FEWEST_DEPARTURES else 0.0)
        more = (self.inside + ahead - self.company) / rate if rate else 0.0
        return max(0.0, self.stay_s + more) + self.upstream_s

    def update(self, now: float) -> None:
        """Time has passed: it was busy if anybody was inside, and a full window of that is one more measurement."""
        passed, self.updated = now - self.updated, now
        if self.inside:
            self.busy_s += passed
        if self.busy_s >= RATE_WINDOW_S:
            self.best_rate = max(self.departures / self.busy_s, RATE_KEPT * self.best_rate)
            self.departures = 0
            self.busy_s = 0.0
