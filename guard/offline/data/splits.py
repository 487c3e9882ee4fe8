"""Splits of clean data: which items detectors are fitted on, calibrated on and tested on.

Rule 1: an item's split follows from its own content, the seed and the shares alone: never from the other items.
Duplicates land together, and so do an item's clean, noisy and attacked versions: they carry the hash of the clean one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import ConfigError, DataError


class Split(StrEnum):
    """Split of the clean data, by what its items are for."""

    HEADS = "heads"  # detectors are fitted on it
    COMBINER = "combiner"  # fusion, ranks and bands
    CALIBRATE = "calibrate"  # p-values; nothing is fitted on it
    TEST = "test"  # nothing but the report has seen it


# Where the test data is a file of its own.
SHARES: Mapping[Split, float] = {Split.HEADS: 0.5, Split.COMBINER: 0.2, Split.CALIBRATE: 0.3}


def content_hash(image: NDArray[Any]) -> str:
    """Return the SHA-256 (hex) of one item's wire values: dtype, shape and bytes. Raises DataError."""
    if image.dtype.kind not in "biuf":
        raise DataError(f"items of dtype {image.dtype} have no content to hash; wanted numbers")
    values = np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<"))
    head = f"{values.dtype.name} {list(image.shape)} ".encode()
    return hashlib.sha256(head + values.tobytes()).hexdigest()


def content_hashes(images: NDArray[Any]) -> NDArray[np.str_]:
    """Return the content hash of each item [item]."""
    return np.array([content_hash(image) for image in images], dtype="<U64")


def assign(hashes: Iterable[str], *, shares: Mapping[Split, float] = SHARES, seed: int = 0) -> dict[str, Split]:
    """Assign a split to each content hash.

    Raises:
        ConfigError: the shares are no division of the whole.
    """
    if any(part < 0 for part in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        given = ", ".join(f"{split} {part:g}" for split, part in shares.items())
        raise ConfigError(f"shares ({given}) are no division of the whole; wanted parts of 1")
    bounds = np.cumsum(list(shares.values()))
    names = list(shares)
    return {one: names[min(int(np.searchsorted(bounds, place(one, seed), "right")), len(names) - 1)] for one in hashes}


def place(content: str, seed: int) -> float:
    """Map a content hash into [0, 1): uniform over contents, and another place for another seed."""
    digest = hashlib.sha256(f"split {seed} {content}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_of(content: str, splits: Mapping[str, Split]) -> Split:
    """Return the split of one content hash. Raises DataError where it was never assigned."""
    if content not in splits:
        raise DataError(f"item {content[:12]}… is in no split; assign() has not seen it")
    return splits[content]


def members(hashes: Iterable[str], splits: Mapping[str, Split], *wanted: Split) -> NDArray[np.bool_]:
    """Return which items are in a wanted split [item]. Raises DataError for an item that was never assigned."""
    return np.array([split_of(one, splits) in wanted for one in hashes], dtype=bool)
