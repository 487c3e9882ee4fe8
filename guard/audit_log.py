"""The audit log: a directory of JSON lines, one a request that an operator may want to know of.

    audit-00000001.jsonl    {"time": ..., "action": "reject", "id": ..., "model": ..., "atlas": ["AML.T0015", ...], ...}

Rule 1: a line is there whole or not at all: what a full disk or a crash cut off is taken back, or passed over.
Rule 2: files are their owner's alone, and bounded: beyond bytes or age the oldest files go, and one where the disk is
        full, which may be smaller than the bound.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataError
from guard.traffic_sample import private

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LOG_FILE = re.compile(r"audit-(\d{8})\.jsonl")
MAX_FILE_BYTES = 2 << 20
FILE_DIVISOR = 8  # of a log's bytes, a file has one part in so many


@dataclass(eq=False)
class AuditLog:
    """A log that is written to; all its methods are called from one thread."""

    folder: Path
    max_bytes: int
    max_age_s: float

    def append(self, lines: bytes, now: float) -> None:
        """Write whole lines at the end of the newest file, or of a new one. Raises OSError: then none was written."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = log_files(self.folder)
        number, newest = found[-1] if found else (0, None)
        file_bytes = max(min(self.max_bytes // FILE_DIVISOR, MAX_FILE_BYTES), len(lines))
        if newest is None or newest.stat().st_size + len(lines) > file_bytes:
            newest = self.folder / f"audit-{number + 1:08}.jsonl"
            found.append((number + 1, newest))
        self.prune([file for _, file in found[:-1]], len(lines) + size_of(newest), now)
        try:
            append_whole(newest, lines)
        except OSError as error:
            older = [file for _, file in found[:-1] if file.exists()]
            if error.errno not in DISK_FULL or not older:
                raise
            older[0].unlink(missing_ok=True)
            append_whole(newest, lines)

    def prune(self, older: list[Path], newest_bytes: int, now: float) -> None:
        """Remove the oldest files, so that with `newest_bytes` beside them those left are within the bounds."""
        facts = [(file, file.stat()) for file in older]
        total = newest_bytes + sum(fact.st_size for _, fact in facts)
        for file, fact in facts:
            if total <= self.max_bytes and fact.st_mtime >= now - self.max_age_s:
                return
            file.unlink(missing_ok=True)
            total -= fact.st_size


def append_whole(file: Path, content: bytes) -> None:
    """Append to a file all of it or nothing. Raises OSError."""
    descriptor = private(str(file), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
    try:
        before = os.fstat(descriptor).st_size
        try:
            write_all(descriptor, content)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of it; a disk takes less than it was given where it is nearly full. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def size_of(file: Path) -> int:
    """The bytes of a file; none where it is not there."""
    return file.stat().st_size if file.exists() else 0


def log_files(folder: Path) -> list[tuple[int, Path]]:
    """The numbers and regular files of a log, oldest first."""
    found = [(LOG_FILE.fullmatch(file.name), file) for file in folder.iterdir()]
    return sorted((int(match[1]), file) for match, file in found if match and stat.S_ISREG(file.lstat().st_mode))


def is_audit_log(folder: Path) -> bool:
    """Whether a directory holds files of an audit log."""
    return folder.is_dir() and bool(log_files(folder))


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log in their order; what a crash cut off is passed over.

    Raises:
        DataError: the directory is none, or holds no audit log.
    """
    if not is_audit_log(folder):
        raise DataError(
            f"{folder} is no audit log: wanted a directory with audit-*.jsonl, as `guard serve` writes where audit_dir "
            "is set"
        )
    for _, file in log_files(folder):
        try:
            with file.open("rb") as stream:
                yield from filter(None, map(parsed, stream))
        except FileNotFoundError:  # removed by the guard meanwhile: it was the oldest
            continue
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error


def kept_tensor(line: Mapping[str, Any]) -> NDArray[Any] | None:
    """The input that a line kept, as it came; None where it kept none that can be read."""
    try:
        tensor = line["input"]
        values = np.frombuffer(base64.b64decode(tensor["base64"], validate=True), np.dtype(tensor["dtype"]))
        return values.reshape(tensor["shape"])
    except (KeyError, TypeError, ValueError):
        return None


def parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None where it holds none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("action"), str) else None
