"""The log of the guard: one JSON line an event.

Rule 1: nothing a line says is ever sent to a client; scores and p-values belong here and on the admin listener.
Rule 2: one line a reject, a flag, an unchecked request or a change of state; none for what simply passed.
Rule 3: lines that found no room in the stream are counted, and told in the next one that does.
Rule 4: a program goes by `event`, which is one of a few; `msg` is the same for a reader, with what is to be said of it.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

Level = Literal["debug", "info", "warning", "error"]
LIBRARY_LINE_S = 0.1  # between two lines of one place in a library: what clients send can make it write
MAX_MESSAGE_CHARACTERS = 2000
LOGGER = "guard"  # of lines of our own
SERVICE = "guard"  # unless the operator names it otherwise
SAID = ("warning", "because", "cause", "message")  # fields that say more of an event, the first that is there
RANK: dict[Level, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}


class Stream(Protocol):
    """What lines are written to; it may take none of a text, and returns how many characters it took."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...


class Log:
    """A log that writes JSON lines of at least `level`."""

    def __init__(self, level: Level = "info", stream: Stream | None = None, *, service: str = SERVICE) -> None:
        self.level: Level = level
        self.service = service
        self.stream: Stream = sys.stderr if stream is None else stream
        self.lock = threading.Lock()
        self.lost_lines = 0  # since the last line that was taken
        self.lost: Callable[[], None] = lambda: None  # called for each line that was not
        self.limits: weakref.WeakSet[Seldom] = weakref.WeakSet()  # of lines that may be held back

    def catch_up(self, now: float = math.inf) -> None:
        """Write what was held back, of every limit whose time is over by `now`; by default all."""
        for limit in list(self.limits):
            limit.catch_up(now)

    def debug(self, event: str, **fields: Any) -> None:
        self.write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self.write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self.write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self.write("error", event, fields)

    def write(self, level: Level, event: str, fields: dict[str, Any]) -> None:
        if RANK[level] < RANK[self.level]:
            return
        with self.lock:
            if self.lost_lines and self.taken("warning", "lines lost", {"lines": self.lost_lines}):
                self.lost_lines = 0
            if self.taken(level, event, fields):
                return
            self.lost_lines += 1
        self.lost()

    def taken(self, level: Level, event: str, fields: dict[str, Any]) -> bool:
        """Write a line, and return whether the stream took it."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        more = next((str(found) for name in SAID if (found := fields.get(name)) is not None), "")
        own = {
            "time": time,
            "level": level,
            "event": event,
            "msg": f"{event}: {more}"[:MAX_MESSAGE_CHARACTERS] if more else event,
            "logger": LOGGER,
            "service.name": self.service,
        }
        line = json.dumps({**own, **fields}, default=str) + "\n"
        written = self.stream.write(line)
        self.stream.flush()
        return written == len(line)


class Seldom:
    """A limit of one line of a kind in `every_s`, which counts those between: a flood of calls is no flood of lines.

    What was held back is told with the next line, or by `catch_up` once `every_s` is over: no count is kept for later.
    """

    def __init__(self, every_s: float, log: Log | None = None) -> None:
        """Hold back lines; those of a `log` are caught up with whenever the log is."""
        self.every_s = every_s
        self.lock = threading.Lock()
        self.last: dict[str, float] = {}
        self.held_back: dict[str, int] = {}
        self.latest: dict[str, Callable[[int], None]] = {}  # how the last one that was held back is told
        if log is not None:
            log.limits.add(self)

    def due(self, kind: str, now: float, tell: Callable[[int], None] | None = None) -> int | None:
        """The number of lines of this kind held back since the last one; None where this one is held back, too.

        Then `tell` is called later, with the number of those that were held back beside this one.
        """
        with self.lock:
            if now - self.last.get(kind, -self.every_s) < self.every_s:
                self.held_back[kind] = self.held_back.get(kind, 0) + 1
                if tell is not None:
                    self.latest[kind] = tell
                return None
            self.last[kind] = now
            self.latest.pop(kind, None)
            return self.held_back.pop(kind, 0)

    def tell(self, kind: str, now: float, line: Callable[[int], None]) -> None:
        """Have a line told, by a function of the number that was held back: now, or later for all until then."""
        if (held_back := self.due(kind, now, line)) is not None:
            line(held_back)

    def catch_up(self, now: float) -> None:
        """Tell of what was held back longer than `every_s` ago."""
        with self.lock:
            over = [kind for kind in self.latest if now - self.last[kind] >= self.every_s]
            lines = [(self.latest.pop(kind), self.held_back.pop(kind)) for kind in over]
            self.last.update({kind: min(now, time.monotonic()) for kind in over})
        for line, count in lines:
            line(count - 1)


class Bridge(logging.Handler):
    """A handler that writes libraries' log records as lines of ours, so that the output stays one format."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log
        self.seldom = Seldom(LIBRARY_LINE_S, log)

    def emit(self, record: logging.LogRecord) -> None:
        kind = f"{record.name}:{record.lineno}:{record.msg[:40]}"
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        cause = record.exc_info[1] if record.exc_info else None
        facts = {
            "logger": record.name,
            "message": record.getMessage()[:MAX_MESSAGE_CHARACTERS],
            "cause": repr(cause) if cause else None,
        }
        self.seldom.tell(
            kind, time.monotonic(), lambda count: self.log.write(level, "library", {**facts, "held_back": count})
        )
