"""Warnings of one thread while others raise their own: Python's own way to catch them is for one thread alone.

How it works: `warnings.catch_warnings` changes what the whole process does with warnings, so that of two threads the
one that leaves last restores what the other had set. Here the first thread that comes enters it once, for all; a
warning goes to the list of the thread that raised it; the last thread that leaves restores what was there.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ThreadWarnings:
    """Catcher of warnings by thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.local = threading.local()
        self.inside = 0
        self.context: warnings.catch_warnings[None] | None = None
        self.before: Any = None  # what showed warnings until the first thread came

    @contextmanager
    def caught(self) -> Iterator[list[str]]:
        """Collect the text of each warning that this thread raises within the context."""
        self.enter()
        self.local.texts = texts = list[str]()
        try:
            yield texts
        finally:
            self.local.texts = None
            self.leave()

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.context = warnings.catch_warnings()
                self.context.__enter__()
                self.before = warnings.showwarning
                warnings.simplefilter("always")
                warnings.showwarning = self.show
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0 and self.context is not None:
                self.context.__exit__(None, None, None)

    def show(self, message: Warning | str, *where: Any, **more: Any) -> None:
        """Keep a warning for its thread; that of a thread which catches none is shown as before."""
        texts = getattr(self.local, "texts", None)
        if texts is None:
            self.before(message, *where, **more)
        else:
            texts.append(str(message).strip())
