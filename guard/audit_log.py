"""The audit log: a directory of JSON lines, one a request that an operator may want to know of.

    audit-00000001.jsonl    {"time": ..., "action": "reject", "id": ..., "model": ..., "atlas": ["AML.T0015", ...], ...}

Rule 1: a line is there whole or not at all: what a full disk or a crash cut off is taken back, or passed over.
Rule 2: files are their owner's alone, and bounded: beyond bytes or age the oldest files go, and one where the disk is
        full, which may be smaller than the bound.
Rule 3: no line stays longer than the bound of age. A file's lines span an eighth of it, and the file goes when its last
        line is seven eighths old.
Rule 4: several guards may share a log: each line is written under a lock, and what another removed is no fault.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataError
from guard.traffic_sample import private, stat_of

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LOG_FILE = re.compile(r"audit-(\d{8})\.jsonl")
MAX_FILE_BYTES = 2 << 20
FILE_DIVISOR = 8  # of a log's bytes and age, a file has one part in so many


@dataclass(eq=False)
class AuditLog:
    """A log that is written to; all its methods are called from one thread."""

    folder: Path
    max_bytes: int
    max_age_s: float
    begun: tuple[Path, float] | None = None  # the newest file, and when its first line was written

    def append(self, lines: bytes, now: float) -> None:
        """Write whole lines at the end of the newest file, or of a new one. Raises OSError: then none was written."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = [(number, file, fact) for number, file in log_files(self.folder) if (fact := stat_of(file))]
        file_bytes = max(min(self.max_bytes // FILE_DIVISOR, MAX_FILE_BYTES), len(lines))
        number, newest, older = 0, self.folder, found
        if found:
            number, newest, fact = found[-1]
            goes_on = fact.st_size + len(lines) <= file_bytes and self.began(newest) >= now - self.span_s
            older = found[:-1] if goes_on else found
        if older is found:
            newest = self.folder / f"audit-{number + 1:08}.jsonl"
        newest_bytes = len(lines) + size_of(newest)
        self.remove([(file, fact) for _, file, fact in older], newest_bytes, now)
        try:
            append_whole(newest, lines, now)
        except OSError as error:
            left = [file for _, file, _ in older if file.exists()]
            if error.errno not in DISK_FULL or not left:
                raise
            left[0].unlink(missing_ok=True)
            append_whole(newest, lines, now)
        if self.begun is None or self.begun[0] != newest:
            self.begun = newest, now

    @property
    def span_s(self) -> float:
        """The seconds from a file's first line to its last."""
        return self.max_age_s / FILE_DIVISOR

    def began(self, file: Path) -> float:
        """The Unix time of a file's first line; where that cannot be read, of its last."""
        if self.begun is None or self.begun[0] != file:
            self.begun = file, first_time(file)
        return self.begun[1]

    def prune(self, now: float) -> None:
        """Remove the files that are too old, the newest too; for a guard that has nothing to write. Raises OSError."""
        if self.folder.is_dir():
            facts = [(file, fact) for _, file in log_files(self.folder) if (fact := stat_of(file))]
            self.remove(facts, 0, now)

    def remove(self, older: list[tuple[Path, os.stat_result]], newest_bytes: int, now: float) -> None:
        """Remove the oldest files, so that with `newest_bytes` beside them those left are within the bounds."""
        total = newest_bytes + sum(fact.st_size for _, fact in older)
        for file, fact in older:
            if total <= self.max_bytes and fact.st_mtime >= now - (self.max_age_s - self.span_s):
                return
            file.unlink(missing_ok=True)
            total -= fact.st_size


def first_time(file: Path) -> float:
    """The Unix time of a file's first line; where that cannot be read, of its last; long ago where the file is gone."""
    try:
        with file.open("rb") as stream:
            first, last = parsed(stream.readline()) or {}, os.fstat(stream.fileno()).st_mtime
        return datetime.fromisoformat(first["time"]).timestamp()
    except FileNotFoundError:
        return -math.inf
    except (KeyError, TypeError, ValueError):
        return last


def append_whole(file: Path, content: bytes, now: float) -> None:
    """Append to a file all of it or nothing; `now` is the file's time then. Raises OSError."""
    written = False
    while not written:
        descriptor = private(str(file), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
        try:
            with suppress(OSError):  # a disk without locks is one guard's
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink > 0:  # else another guard has removed it meanwhile
                append_to(descriptor, content)
                os.utime(descriptor, (now, now))
                written = True
        finally:
            os.close(descriptor)


def append_to(descriptor: int, content: bytes) -> None:
    """Append to an open file all of it or nothing. Raises OSError."""
    before = os.fstat(descriptor).st_size
    try:
        write_all(descriptor, content)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


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
