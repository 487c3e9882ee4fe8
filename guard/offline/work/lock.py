"""Lock on a work directory: one run at a time writes into it.

Rule 1: the lock ends with the process that holds it, however that ends: the kernel gives it up, no file does.
Rule 2: a lock that was given up leaves no file behind, and no folder in which there is nothing else.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from guard.errors import BundleError
from guard.offline.work.directory import WorkDirectory


@contextmanager
def locked(work: WorkDirectory) -> Iterator[None]:
    """Hold the lock on a work directory, which is made where it is missing.

    Raises BundleError where another run holds it, or the file system has no locks.
    """
    created = not work.path.exists()
    work.path.mkdir(parents=True, exist_ok=True)
    stream = taken(work)
    try:
        stream.truncate(0)
        json.dump({"process": os.getpid(), "host": platform.node(), "command": " ".join(sys.argv[:2])}, stream)
        stream.flush()
        yield
    finally:
        work.lock.unlink(missing_ok=True)  # while it is held: who waits for this file finds that it is gone
        stream.close()
        if created:
            with suppress(OSError):  # something was written into it
                work.path.rmdir()


def taken(work: WorkDirectory) -> IO[str]:
    """Return the lock's open file once it is locked, and is still the one at its path."""
    while True:
        with ExitStack() as opened:
            stream = opened.enter_context(work.lock.open("a+", encoding="utf-8"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                raise held_by(work, stream.read()) from error
            except OSError as error:
                raise BundleError(
                    f"{work.path} lies on a file system without locks ({error.strerror}), where two runs would write "
                    "over each other; name an --out on another one"
                ) from error
            if is_at(work.lock, stream):
                opened.pop_all()
                return stream


def is_at(path: Path, stream: IO[str]) -> bool:
    """Return whether an open file is the one at a path: another holder may have removed it as it let go."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def held_by(work: WorkDirectory, said: str) -> BundleError:
    """Return the error that says who holds the lock, as far as that is known."""
    try:
        holder: dict[str, Any] = json.loads(said)
        who = f"process {holder['process']} on {holder['host']} ({holder['command']})"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return BundleError(
        f"{work.path} is in use by {who}; wait until it ends, end it (what it finished is kept), or name another --out"
    )
