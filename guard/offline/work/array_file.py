"""Arrays in a file that is whole or not there: what work is resumed from.

Rule 1: the final name appears when all is written; what cannot be read counts as not there, and is made anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import UNREADABLE


def read_whole(file: Path, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]] | None:
    """The arrays of these names, or all there are; None where one is missing or the file cannot be read."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in (archive.files if names is None else names)}
    except (*UNREADABLE, KeyError):
        return None


def write_whole(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write all, then give it its name; several threads and processes may write side by side."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    with unfinished.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    unfinished.replace(file)
