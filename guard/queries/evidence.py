"""The evidence of a query attack in how a query differs from earlier ones: its change, and not only its nearness.

How it works. A stream of near-copies is no attack by itself: a camera sends one, and so does a client that tries again.
Searches show in their changes. A line search or a binary search asks for a point between two earlier ones: two changes
are parallel, and the new one is shorter; slow motion goes on beyond earlier points. Square and SimBA change a part and
leave the rest as it was, to the last step. An estimate of gradients by small differences (ZOO, NES) changes an item by
less than a step, or beyond the value range where no tile shows it. A sensor's noise does none of this. Changes along
the item itself or along a constant (exposure, contrast, a fade) are left out of the comparison.

The score of a query is that of the earlier queries that it belongs to, slightly forgotten, plus the weight of its
change. At a share of p changes that look like a search by chance it settles at 64 p, so length alone does not alarm.

A search by dense noise alone (Boundary) cannot be told from a still camera by its inputs. Where clients send no
streams every near-copy weighs as much as a search's, and 14 of them are an attack.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from guard.queries.fingerprint import Floats

Bools = NDArray[np.bool_]

MAX_COPY_DISTANCE = 0.05  # root mean square over the coarse view, of the value range
MAX_TYPICAL_SHARE = 0.25  # of the distance between two clean items, which may fill little of their range
MIN_COSINE = 0.95  # between two changes that are parallel; by chance the tiles' differ from 0 by 0.125
MIN_KEPT_SHARE = 0.3  # of a change's length, once exposure is left out; below that it is one of exposure
MIN_UNCHANGED_SHARE = 0.25  # of live tiles, in a sparse change
MIN_LIVE_TILES = 4
SEARCH_WEIGHT = 1.0
COPY_WEIGHT = 1.0  # of any other near-copy, where no streams are expected
STREAM_WEIGHT = 0.1  # of any other near-copy, where cameras and videos are expected
FORGOTTEN_SHARE = 1 / 64  # of a score, with each query that it is handed on to
MAX_SCORE = 12.0  # beyond it, a query is an attack's: other near-copies alone stay below 0.1 x 64


def is_sparse(change: Floats, live: Bools) -> bool:
    """Whether a change [tile] between two items leaves a good part of the live tiles as they were, or all tiles."""
    if not (change != 0).any():
        return True  # the items differ all the same: by less than a step, or where no tile looks
    count = int(live.sum())
    unchanged = int((live & (change == 0)).sum())
    return count >= MIN_LIVE_TILES and unchanged >= MIN_UNCHANGED_SHARE * count


def part_of(change: Floats, others: Floats, exposure: Floats) -> Bools:
    """Tell which changes [entry, tile] one [tile] is a part of, beside those of `exposure` [direction, tile]."""
    axes = orthonormal(exposure)
    kept = change - (change @ axes.T) @ axes
    length = float(np.linalg.norm(kept))
    if length <= MIN_KEPT_SHARE * float(np.linalg.norm(change)):
        return np.zeros(len(others), dtype=np.bool_)
    others_kept = others - (others @ axes.T) @ axes
    lengths = np.linalg.norm(others_kept, axis=1)
    told = (lengths > length) & (lengths > MIN_KEPT_SHARE * np.linalg.norm(others, axis=1))
    found: Bools = told & (others_kept @ kept >= MIN_COSINE * length * lengths)
    return found


def orthonormal(directions: Floats) -> Floats:
    """An orthonormal base [direction, tile] of at most two directions."""
    base: list[Floats] = []
    for one in directions:
        rest = one
        for axis in base:
            rest = rest - (rest @ axis) * axis
        length = float(np.linalg.norm(rest))
        if length > 1e-6 * float(np.linalg.norm(one)):
            base.append((rest / np.float32(length)).astype(np.float32))
    return np.stack(base) if base else np.zeros((0, directions.shape[1]), dtype=np.float32)
