"""The check of the clock against all that tells another time: the model server's `Date`, certificates, and files.

Rule 1: only a contradiction is a remark; where nothing tells the time, that is said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from guard.serve.doctor.certificate_checks import day
from guard.serve.doctor.remark import Remark
from guard.serve.doctor.setup import Setup

MAX_GAP_S = 30.0  # between two clocks, of which one is told in whole seconds


def clock(setup: Setup) -> Iterator[Remark]:
    """Whether the clock agrees with the model server's, and is later than what was written before."""
    now = time.time()
    theirs = server_time(setup)
    gap_s = None if theirs is None else now - theirs
    if gap_s is not None and abs(gap_s) > MAX_GAP_S:
        side = "ahead of" if gap_s > 0 else "behind"
        said = (
            f"{day(now)}: {abs(gap_s):.0f} s {side} the model server's, {day(now - gap_s)}; set the clock that is off"
        )
        yield Remark("clock", "wrong", said)
        return
    newest = max(times_of_files(setup), default=(0.0, ""))
    if newest[0] > now + MAX_GAP_S:
        said = (
            f"{day(now)}, and {newest[1]} was written {day(newest[0])}; the clock is behind, or that file's time wrong"
        )
        yield Remark("clock", "wrong", said)
        return
    compared = "no other clock to compare with" if gap_s is None else f"{gap_s:+.0f} s from the model server's"
    yield Remark("clock", "ok", f"{day(now)}, {compared}; no file of the guard's is of a later time")


def server_time(setup: Setup) -> float | None:
    """What the model server's clock says, by its header `Date` over HTTP; None where it does not say."""
    parts = urlsplit(setup.given.config.rest_upstream)
    if not parts.hostname:
        return None
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=setup.timeout_s)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/v2/health/live")
        told = connection.getresponse().headers.get("date")
        return None if told is None else parsedate_to_datetime(told).timestamp()
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()


def times_of_files(setup: Setup) -> Iterator[tuple[float, str]]:
    """Yield when each file was written that the guard reads or has written."""
    config = setup.given.config
    folders = [named.config.bundle for named in setup.bundles if named.bundle is not None]
    for folder in [*folders, *filter(None, [config.audit_dir])]:
        with suppress(OSError):
            for file in Path(folder).iterdir():
                yield file.stat().st_mtime, str(file)
