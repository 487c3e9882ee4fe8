"""The memory of queries to one model: what each principal sent lately, and what all of them sent.

Rule 1: one owner: everything here runs on one thread, or one event loop.
Rule 2: a principal's own score depends on its own queries alone. What all queries show together is told beside it,
        since otherwise one could send near-copies of another's pictures and have that one refused. Callers without a
        name, and those behind one, are one principal: a search among many others' queries shows there alone.
Rule 3: memory is bounded: the principal that was silent longest makes room; what is older than the expiry is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from guard.near_copies import copy_distance
from guard.queries.evidence import COPY_WEIGHT, MAX_COPY_DISTANCE, MAX_SCORE, MAX_TYPICAL_SHARE, STREAM_WEIGHT
from guard.queries.fingerprint import Fingerprinter, Fingerprints
from guard.queries.recent import Found, RecentQueries

PRINCIPAL_QUERIES = 32
SHARED_QUERIES = 2048  # of all principals together
MAX_PRINCIPALS = 10_000
EXPIRY_S = 900.0


@dataclass(frozen=True)
class QueryFinding:
    """What the memory tells of one request: its worst item's scores."""

    own: float  # among the principal's own queries
    shared: float  # among the queries of all together
    near: int  # own earlier queries that the worst item is a near-copy of
    repeats: int  # items that are identical to an earlier one

    @property
    def is_attack(self) -> bool:
        """Whether the principal's own queries are an attack's."""
        return self.own > MAX_SCORE

    @property
    def is_shared_attack(self) -> bool:
        """Whether the queries of all principals together are an attack's, and the principal's own are none."""
        return not self.is_attack and self.shared > MAX_SCORE


class QueryMemory:
    """A memory of the queries to one model."""

    def __init__(self, fingerprinter: Fingerprinter, *, streams: bool, typical_distance: float | None = None) -> None:
        """Remember what `fingerprinter` makes; with `streams` near-copies alone are no attack.

        `typical_distance` lies between two clean items, of the value range a value of the coarse view.
        """
        self.copy_distance = copy_distance(typical_distance, MAX_COPY_DISTANCE, MAX_TYPICAL_SHARE)
        self.copy_weight = STREAM_WEIGHT if streams else COPY_WEIGHT
        self.constant = fingerprinter.constant
        self.principals: OrderedDict[str, RecentQueries] = OrderedDict()  # the one that was silent longest first
        self.last: dict[str, float] = {}
        self.together = self.new_ring(SHARED_QUERIES)
        self.ring_bytes = self.new_ring().size_bytes

    @property
    def size_bytes(self) -> int:
        """The bytes of all fingerprints; every principal's ring takes as many."""
        return self.together.size_bytes + len(self.principals) * self.ring_bytes

    def see(self, principal: str, queries: Fingerprints, now: float) -> QueryFinding:
        """Score and remember the items of one request of a principal, at this moment of `time.monotonic()`."""
        own = self.ring(principal, now)
        found = [own.see(queries, item, self.constant, now, now - EXPIRY_S) for item in range(len(queries))]
        among = [self.together.see(queries, item, self.constant, now, now - EXPIRY_S) for item in range(len(queries))]
        worst = max(found, key=by_score, default=Found(0.0, 0))
        shared = max((one.score for one in among), default=0.0)
        return QueryFinding(worst.score, shared, worst.near, sum(one.repeated for one in found))

    def ring(self, principal: str, now: float) -> RecentQueries:
        """The principal's own ring; what expired, and the longest silent where there are too many, is let go."""
        ring = self.principals.pop(principal, None)
        for silent in list(self.silent(now)):
            del self.principals[silent], self.last[silent]
        if ring is None:
            if len(self.principals) >= MAX_PRINCIPALS:
                silent, _ = self.principals.popitem(last=False)
                del self.last[silent]
            ring = self.new_ring()
        self.principals[principal], self.last[principal] = ring, now
        return ring

    def new_ring(self, size: int = PRINCIPAL_QUERIES) -> RecentQueries:
        """A ring for so many queries, by default of a principal that is not known yet."""
        return RecentQueries(size, len(self.constant), copy_weight=self.copy_weight, copy_distance=self.copy_distance)

    def silent(self, now: float) -> Iterator[str]:
        """Yield the principals of which all is forgotten, the longest silent first."""
        for principal in self.principals:
            if self.last[principal] >= now - EXPIRY_S:
                return
            yield principal


def by_score(found: Found) -> float:
    """The order among items: the most suspicious last."""
    return found.score
