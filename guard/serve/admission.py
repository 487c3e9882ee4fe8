"""Admission control: refuses calls that could not be answered within their deadlines, since work on them is lost.

How it works. Calls that were inspected lately took `stay_s` on average, among `company` others. A call that comes now
finds `inside` others, and each one more than `company` delays it by the time that one call takes at the guard's best
rate. So it is expected to take stay_s + (inside - company) / best_rate, and then what the model server lately took. If
that is more than `USABLE_TIME_SHARE` of the time left until its deadline, it is not admitted, and its message is not
read. Example:
12 ms among 5 others, now 21 inside, at best 800 calls a second, 5 ms upstream: 12 + 16 / 0.8 + 5 = 37 ms. A call with
250 ms left is admitted, one with 40 ms left is not, since 37 ms are more than 0.85 * 40 ms.

Where more comes than can be answered, calls that could just be answered in time are the wrong ones to begin: some of
them end late after all, and calls that come in one by one are inspected one by one. So calls begin in bursts
(`may_begin`): until they are expected to take `FULL_TIME_SHARE` of their time, and then none until `REFILL_SHARE` of
the number inside is left. Each call is held against its own deadline, so a client that has none to spare delays no
other.

The time for the inspection alone is bounded as well (`inspect_s`); what the model server takes does not count in it.

The rate of late cannot stand in for the best one: where few calls are admitted few leave, and so still fewer would be
admitted.

Rule 1: an idle guard sheds nothing, whatever was measured before.
Rule 2: a place that was taken is given back, once, whatever becomes of its call.
Rule 3: no queue, no input or output; the caller passes the time (`tear` alone reads the clock).
"""

from __future__ import annotations

import math
import time

from guard.errors import Overloaded

CROWDED = "too many requests are being inspected for another to be answered in time; try again later or elsewhere"
USABLE_TIME_SHARE = 0.85  # of the time left that a call may be expected to take
FULL_TIME_SHARE = 0.8  # likewise, in a burst of calls that begin
REFILL_SHARE = 0.3  # of the calls that may be inside, at which the next burst begins
MIN_INSIDE_CALLS = 128  # calls, before any has to wait at the gate
MAX_INSIDE_WORK_S = 0.5  # of work, at the best rate
NEWEST_CALL_SHARE = 0.1  # of the newest call in a mean
RATE_WINDOW_S = 0.25  # of busy time over which departures are counted
MIN_RATE_CALLS = 10  # that tell a rate before the first window is over
KEPT_RATE_SHARE = 0.98  # of the best rate after a window that was worse


class Place:
    """The place of a call among those that are being inspected."""

    def __init__(self, admission: Admission, now: float) -> None:
        self.of = admission
        self.admission: Admission | None = admission  # None once the place is given back
        self.entered = now
        self.company = admission.inside

    def leave(self, now: float, *, inspected: bool) -> None:
        """Give the place back, the inspection done or given up; only the first time counts."""
        if self.admission is not None:
            self.admission.left(self, now, inspected=inspected)
            self.admission = None

    def withdraw(self) -> None:
        """Give the place back as if it had never been taken: the call belongs elsewhere."""
        if self.admission is not None:
            self.admission.inside -= 1
            self.admission = None

    def tear(self) -> None:
        """Give the place back because the call is over, or may no longer hold it."""
        self.leave(time.monotonic(), inspected=False)


class Admission:
    """The number of calls being inspected, how long each takes, and how fast they leave at best.

    Calls that are given up leave as well: a client that cancels its calls must not make the guard seem slow to others.
    """

    def __init__(self) -> None:
        self.inside = 0
        self.stay_s = self.company = self.upstream_s = 0.0  # means of late
        self.best_rate = 0.0  # calls a second
        self.updated = self.busy_s = 0.0
        self.departures = 0  # in this window
        self.is_full = False  # since a call found no room, until one finds it again

    def enter(self, now: float, remaining_s: float, inspect_s: float = math.inf) -> Place:
        """Admit a call that has `remaining_s` until its deadline, `inspect_s` of them for the guard, and place it.

        Raises:
            Overloaded: it could not be answered in time.
        """
        self.update(now)
        if not self.is_in_time(remaining_s, inspect_s=inspect_s):
            raise Overloaded(CROWDED)
        self.inside += 1
        return Place(self, now)

    def left(self, place: Place, now: float, *, inspected: bool) -> None:
        self.update(now)
        self.inside -= 1
        self.departures += 1
        if inspected:
            self.stay_s += NEWEST_CALL_SHARE * (now - place.entered - self.stay_s)
            self.company += NEWEST_CALL_SHARE * (place.company - self.company)

    def forget(self) -> None:
        """Begin to measure anew, since calls from now on take another time: an engine broke, or is in order again."""
        self.stay_s = self.company = self.best_rate = self.busy_s = 0.0
        self.departures = 0
        self.is_full = False

    def forwarded(self, seconds: float) -> None:
        """Record how many seconds the model server took over an answer."""
        self.upstream_s += NEWEST_CALL_SHARE * (seconds - self.upstream_s)

    def has_room(self) -> bool:
        """Whether more calls inside could keep the guard busier; if not, a call loses nothing by waiting."""
        return self.inside < max(MIN_INSIDE_CALLS, MAX_INSIDE_WORK_S * self.best_rate)

    def may_begin(self, now: float, remaining_s: float, inspect_s: float = math.inf) -> bool:
        """Whether a call should begin now, where it can wait as well."""
        self.update(now)
        level = REFILL_SHARE if self.is_full else 1.0
        self.is_full = self.inside > 0 and self.inside >= level * self.most_inside(remaining_s, inspect_s)
        return not self.is_full

    def most_inside(self, remaining_s: float, inspect_s: float = math.inf) -> float:
        """The number of calls inside with which one that has so much time left takes `FULL_TIME_SHARE` of it."""
        rate = self.rate()
        spare_s = min(FULL_TIME_SHARE * remaining_s - self.upstream_s, FULL_TIME_SHARE * inspect_s) - self.stay_s
        return self.company + spare_s * rate if rate else math.inf

    def is_in_time(self, remaining_s: float, ahead: int = 0, *, inspect_s: float = math.inf) -> bool:
        """Whether a call with so much time left can be answered, where `ahead` others come in before it."""
        if min(remaining_s, inspect_s) <= 0:
            return False
        if not self.inside + ahead:
            return True
        expected_s = self.expected_s(ahead)
        in_budget = expected_s <= USABLE_TIME_SHARE * inspect_s
        return in_budget and expected_s + self.upstream_s <= USABLE_TIME_SHARE * remaining_s

    def expected_s(self, ahead: int = 0) -> float:
        """The seconds that the guard is expected to take over a call that comes now, with `ahead` others before it."""
        rate = self.rate()
        more = (self.inside + ahead - self.company) / rate if rate else 0.0
        return max(0.0, self.stay_s + more)

    def rate(self) -> float:
        """The calls a second that leave at best; 0 while that is not known."""
        return self.best_rate or (self.departures / self.busy_s if self.departures >= MIN_RATE_CALLS else 0.0)

    def update(self, now: float) -> None:
        """Count the time that has passed as busy if calls were inside; a full window of that measures the rate anew."""
        passed, self.updated = now - self.updated, now
        if self.inside:
            self.busy_s += passed
        if self.busy_s >= RATE_WINDOW_S:
            self.best_rate = max(self.departures / self.busy_s, KEPT_RATE_SHARE * self.best_rate)
            self.departures = 0
            self.busy_s = 0.0
