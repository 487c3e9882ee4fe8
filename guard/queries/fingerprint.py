"""Fingerprints of items: what a query memory keeps of an input, so that near-copies and their changes are found.

How it works. An item becomes three things. A digest of its values, rounded to a millionth of the value range, tells
identical items. Its coarse view (means in 8 by 8 fields), shortened by a random projection, is close for near-copies.
And each of its 64 tiles becomes one sum of its values, in steps of 1 / 4,080 within the value range, under random
signs: the difference of two items' sums keeps the length and the directions of the change between them to about an
eighth, and is exactly 0 where a tile has not changed.

Rule 1: projection and signs are random and secret, so that no change can be put where they do not look.
Rule 2: items of one digest are one item: what is smaller than a step, lies outside the value range or is no number
        changes the digest, though it changes no tile. A millionth is more than what two decoders' rounding differs by.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.near_copies import GRID_PARTS, SEGMENT_PARTS, coarse_view

Floats = NDArray[np.float32]

PROJECTED_VALUES = 24
VALUE_STEPS = 4080  # steps of the value range, 16 to one of 8 bits: sums of 4,000 values stay exact in float32
DIGEST_STEPS = 256 * VALUE_STEPS  # so that values of 8 bits lie in the middle of a step, whatever rounding made of them


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """The fingerprints of the items of one request."""

    digests: NDArray[np.uint64]  # [item]
    views: Floats  # [item, PROJECTED_VALUES], whose distances are root mean squares of the value range
    tiles: Floats  # [item, tile]: signed sums, of steps
    live: NDArray[np.bool_]  # [item, tile]: some value lies inside the value range, so it could have changed

    def __len__(self) -> int:
        return len(self.digests)


@dataclass(frozen=True, eq=False)
class Fingerprinter:
    """The secret projection and signs for items of one shape, channels first."""

    shape: tuple[int, ...]
    generator: np.random.Generator
    signs: Floats = field(init=False)  # [value]
    projection: Floats = field(init=False)  # [view value, projected value]
    tile_of: tuple[NDArray[np.int64], ...] = field(init=False)  # where the tiles begin, of each place axis

    def __post_init__(self) -> None:
        most = SEGMENT_PARTS if len(self.shape) == 2 else GRID_PARTS
        starts = []
        for length in self.shape[1:]:
            count = min(length, most)
            starts.append(np.arange(count) * length // count)
        values = self.shape[0] * int(np.prod([len(one) for one in starts]))
        directions = self.generator.standard_normal((values, PROJECTED_VALUES))
        projection = (directions / np.sqrt(PROJECTED_VALUES * values)).astype(np.float32)
        signs = self.generator.choice(np.asarray([-1, 1], dtype=np.float32), self.shape)
        for name, value in (("tile_of", tuple(starts)), ("projection", projection), ("signs", signs)):
            object.__setattr__(self, name, value)

    @property
    def values(self) -> int:
        """The number of values of an item."""
        return int(np.prod(self.shape))

    @property
    def constant(self) -> Floats:
        """The tiles of a change that adds the same to every value [tile]."""
        tiles: Floats = self.by_tile(self.signs[None].sum(axis=1), np.add)[0]
        return tiles

    def of(self, unit: Floats) -> Fingerprints:
        """Fingerprint items [item, channel, ...] in [0, 1]; in views and tiles what is no number counts as 0."""
        digests = digests_of(unit)
        unit = np.nan_to_num(np.asarray(unit, dtype=np.float32), nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
        steps = np.rint(unit * np.float32(VALUE_STEPS))
        whole = steps.astype(np.uint16)
        inside = ((whole > 0) & (whole < VALUE_STEPS)).any(axis=1)
        return Fingerprints(
            digests=digests,
            views=coarse_view(unit) @ self.projection,
            tiles=self.by_tile((steps * self.signs).sum(axis=1), np.add),
            live=self.by_tile(inside, np.logical_or),
        )

    def by_tile(self, values: NDArray[Any], reduce: np.ufunc) -> NDArray[Any]:
        """Reduce values [item, ...] to [item, tile]."""
        for axis, starts in enumerate(self.tile_of, start=1):
            values = reduce.reduceat(values, starts, axis=axis)
        return values.reshape(len(values), -1)


def digests_of(unit: Floats) -> NDArray[np.uint64]:
    """The digests [item] of items in [0, 1] or beyond, rounded to a millionth."""
    with np.errstate(over="ignore", invalid="ignore"):
        whole = np.rint(np.asarray(unit, dtype=np.float32) * np.float32(DIGEST_STEPS)) + np.float32(0)  # no zero is -0
    whole[np.isnan(whole)] = np.nan  # of all the bits that are no number, one kind
    found = [int.from_bytes(hashlib.blake2b(item.tobytes(), digest_size=8).digest(), "little") for item in whole]
    return np.asarray(found, dtype=np.uint64)
