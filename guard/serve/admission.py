"""Sheds at the door what could not be answered within its deadline: work on it would be lost, and others' with it.

How it works. Calls that were inspected lately took `stay_s`, among `company` others. One that comes now finds `inside`
others, and each more than then delays it by what one takes where the guard is at its best: it will take
stay_s + (inside - company) / best_rate, and then what the model server lately took. If that is more than `SHARE` of
what is left until its deadline, it is refused before its message is read. Example: 12 ms among 5, now 21 inside, at
best 800 a second, 5 ms upstream: 12 + 16 / 0.8 + 5 = 37 ms. A call with 250 ms left comes in, one with 50 ms does not.

A rate measured at the door alone would not do: few let in is few that leave, and so few that are let in.

A client that tries again at once makes of every refusal a new call, and refusing costs an eighth of an answer: told at
once, a few hundred such clients take all there is. So while more calls are refused than leave, each hears of it only
when `HOLD_SHARE` of its time is over: too late to try again often, still with a status.

Rule 1: an idle guard sheds nothing, whatever was measured before.
Rule 2: a place that was taken is left, once, whatever becomes of its call.
Rule 3: no queue, no input and output; who enters tells the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from guard.errors import Overloaded

CROWDED = "too many requests are being inspected for another to be answered in time; try again later or elsewhere"
SHARE = 0.85  # of the time left that may be spent, as far as it can be foreseen
HOLD_SHARE = 0.9
MOST_HELD = 1024
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
        self.held = 0  # refused, and not told yet
        self.stay_s = self.company = self.upstream_s = 0.0  # means of late
        self.best_rate = 0.0  # calls a second
        self.updated = self.busy_s = 0.0
        self.departures = self.refusals = 0  # in this window
        self.pressed = False  # more were refused than left, in the last one

    def enter(self, now: float, remaining_s: float) -> Place:
        """A place for a call. Raises Overloaded where it could not leave in time."""
        self.update(now)
        if self.inside and self.expected_s() > SHARE * remaining_s:
            self.refusals += 1
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

    def expected_s(self) -> float:
        """How long a call that comes now will take."""
        rate = self.best_rate or (self.departures / self.busy_s if self.departures >= FEWEST_DEPARTURES else 0.0)
        more = (self.inside - self.company) / rate if rate else 0.0
        return max(0.0, self.stay_s + more) + self.upstream_s

    def hold_s(self, remaining_s: float) -> float:
        """For how long a refused call is not told: not at all, unless refusals outnumber departures."""
        return HOLD_SHARE * max(0.0, remaining_s) if self.pressed and self.held < MOST_HELD else 0.0

    def hold(self) -> Callable[[], None]:
        """Count a refused call that is not told yet; what is returned counts it out."""
        self.held += 1
        return self.release

    def release(self) -> None:
        self.held -= 1

    def update(self, now: float) -> None:
        """Time has passed: it was busy if anybody was inside, and a full window of that is one more measurement."""
        passed, self.updated = now - self.updated, now
        if self.inside:
            self.busy_s += passed
        if self.busy_s >= RATE_WINDOW_S:
            self.best_rate = max(self.departures / self.busy_s, RATE_KEPT * self.best_rate)
            self.pressed = self.refusals > self.departures
            self.departures = self.refusals = 0
            self.busy_s = 0.0
