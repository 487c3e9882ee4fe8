"""The latest queries that are remembered together: fingerprints, scores and times in a ring.

Rule 1: memory is fixed when it is made; what is oldest is overwritten.
Rule 2: an identical query adds no evidence, and is not remembered twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from guard.queries.evidence import (
    FORGOTTEN_SHARE,
    MAX_COPY_DISTANCE,
    SEARCH_WEIGHT,
    is_sparse,
    part_of,
)
from guard.queries.fingerprint import PROJECTED_VALUES, Fingerprints, Floats

COMPARED_QUERIES = 32  # the closest, whose changes are compared
FAR_DISTANCE = 1e6  # where the ring begins: no item is near it


@dataclass(frozen=True)
class Found:
    """What a memory tells of one query."""

    score: float
    near: int  # earlier queries that it is a near-copy of
    repeated: bool = False  # it is identical to one


class RecentQueries:
    """A ring of the latest queries."""

    def __init__(self, size: int, tiles: int, *, copy_weight: float, copy_distance: float = MAX_COPY_DISTANCE) -> None:
        self.copy_weight = copy_weight  # of a near-copy whose change is no search's
        self.copy_distance = copy_distance  # up to which an item is one
        self.views = np.full((size, PROJECTED_VALUES), FAR_DISTANCE, dtype=np.float32)
        self.lengths = (self.views**2).sum(axis=1)
        self.tiles = np.zeros((size, tiles), dtype=np.float32)
        self.digests = np.zeros(size, dtype=np.uint64)
        self.scores = np.zeros(size, dtype=np.float32)
        self.times = np.full(size, -np.inf, dtype=np.float64)
        self.next = 0

    @property
    def size_bytes(self) -> int:
        """The bytes of all arrays."""
        return sum(a.nbytes for a in (self.views, self.lengths, self.tiles, self.digests, self.scores, self.times))

    def see(self, queries: Fingerprints, item: int, constant: Floats, now: float, since: float) -> Found:
        """Score one query among those that are not older than `since`, and remember it."""
        recent = self.times >= since
        same = recent & (self.digests == queries.digests[item])
        if same.any():
            place = int(same.argmax())
            self.times[place] = now
            return Found(float(self.scores[place]), int(same.sum()), repeated=True)
        view, tiles = queries.views[item], queries.tiles[item]
        distances = self.lengths - 2 * (self.views @ view) + float(view @ view)
        distances[~recent] = np.inf
        belongs = distances <= self.copy_distance**2
        near = int(belongs.sum())
        weight = self.copy_weight if near else 0.0
        nearest = int(distances.argmin())
        if np.isfinite(distances[nearest]):
            closest = np.argpartition(distances, min(COMPARED_QUERIES, len(distances)) - 1)[:COMPARED_QUERIES]
            closest = closest[recent[closest] & (closest != nearest)]
            start = self.tiles[nearest]
            change, exposure = tiles - start, np.stack([start, constant])
            on_line = closest[part_of(change, self.tiles[closest] - start, exposure)]
            if len(on_line):
                belongs[on_line] = belongs[nearest] = True
                weight = SEARCH_WEIGHT
            elif near and is_sparse(change, queries.live[item]):
                weight = SEARCH_WEIGHT
        before = float(self.scores[belongs].max()) if belongs.any() else 0.0
        score = before * (1 - FORGOTTEN_SHARE) + weight
        self.views[self.next], self.tiles[self.next], self.digests[self.next] = view, tiles, queries.digests[item]
        self.lengths[self.next] = float(view @ view)
        self.scores[self.next], self.times[self.next] = score, now
        self.next = (self.next + 1) % len(self.views)
        return Found(score, near)
