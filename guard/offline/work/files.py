"""Files that are whole or not there: what long work writes, and is resumed from.

Rule 1: the final name appears when all is written. Threads and processes may write the same file side by side.
Rule 2: what cannot be read counts as not there, and is made anew.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import UNREADABLE

# numpy reads the head of an array as a Python literal, and CPython 3.11 fails with a SystemError when two threads build
# syntax trees at once.
READING = threading.Lock()


def write_file(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Create the file's folder, let `write` fill a file beside it, and give that the final name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Pods of two attempts at one job may overlap, each with process 1 (kuberay#5211): a number alone names no writer.
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as stream:
            write(stream)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes) -> None:
    """Write these bytes as the content of a file."""
    write_file(file, lambda stream: stream.write(content))


def write_json(file: Path, content: Any, *, indent: int | None = None) -> None:
    """Write content that JSON can hold; a path becomes its text."""
    write_bytes(file, json.dumps(content, indent=indent, default=str).encode())


def read_json(file: Path) -> Any:
    """Return the content of a JSON file; None where it is not there or cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_arrays(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name, as .npz without pickle."""
    write_file(file, lambda stream: np.savez(stream, allow_pickle=False, **arrays))


def read_arrays(file: Path, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]] | None:
    """Read the arrays of these names, or all there are; None where one is missing or the file cannot be read."""
    try:
        with READING, file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in (archive.files if names is None else names)}
    except (*UNREADABLE, KeyError):
        return None
