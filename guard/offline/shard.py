"""A shard: some items attacked in one batch, and the file that keeps what became of them.

Rule 1: a file is whole or it is not there; one that cannot be read counts as not there, and is made anew.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.bundle import UNREADABLE

Images = NDArray[np.float32]  # [item, ...] in unit space


@dataclass(frozen=True, eq=False)
class Shard:
    """Some correctly classified items, to be attacked in one batch."""

    number: int
    source: NDArray[np.int64]  # [tried]
    images: Images
    labels: NDArray[np.int64]
    hashes: NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a shard; this is what its file holds."""

    kept: NDArray[np.int64]  # [item] places within the shard of the verified items
    predictions: NDArray[np.int64]
    attacked: Images
    noise: Images


def read_outcome(file: Path) -> Outcome | None:
    """None where there is no whole shard: it is then made anew."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return Outcome(**{field.name: archive[field.name] for field in dataclasses.fields(Outcome)})
    except (*UNREADABLE, KeyError):
        return None


def write_outcome(file: Path, outcome: Outcome) -> None:
    """Whole or not at all: the final name appears when all is written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with unfinished.open("wb") as stream:
        np.savez(stream, **{field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)})
    unfinished.replace(file)
