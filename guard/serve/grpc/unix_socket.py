"""A unix socket to listen on, for the guard's own user alone.

Rule 1: the socket is never there with more than mode 0600, not even for a moment.
Rule 2: what a dead server left is removed; a living server's socket, or a file that is none, never is.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PRIVATE_CODE = 0o600
CONNECT_S = 1.0


@contextmanager
def private_socket(path: str) -> Iterator[None]:
    """Make room for a socket at `path`, which is bound within the block, before any other thread can run.

    Raises:
        OSError: the path is taken, or its directory cannot be written to.
    """
    make_room(Path(path))
    before = os.umask(0o777 & ~PRIVATE_CODE)
    try:
        yield
    finally:
        os.umask(before)
    with suppress(OSError):
        Path(path).chmod(PRIVATE_CODE)


def make_room(path: Path) -> None:
    """Remove what a server that has ended left at `path`. Raises OSError."""
    if not path.parent.is_dir():
        raise OSError(errno.ENOENT, "its directory is not there")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "its directory cannot be written to")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
        else:
            raise OSError(errno.EADDRINUSE, "another server listens on it")
