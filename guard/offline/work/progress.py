"""Stages of long work, shown as they run: on a terminal as a bar, elsewhere as plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from guard.offline.work.tables import print_lines
from guard.offline.work.text import short


class Stage:
    """Stage of long work that is running, and its progress display."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar = bar
        self.task = task

    def items(self, what: object, done: int, total: int) -> None:
        """Show that `done` of `total` items of `what` are finished."""
        self.bar.update(self.task, completed=done, total=total, note=short(str(what)))

    def note(self, text: str) -> None:
        """Show what the stage is doing now."""
        self.bar.update(self.task, note=short(text))

    def say(self, *lines: str) -> None:
        """Print lines that stay, as they are."""
        print_lines(self.bar.console, [f"  {line}" for line in lines])


class Stages:
    """Printer of a line for each stage when it ends: its name and its time."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        started = time.monotonic()
        columns = (
            TextColumn("  {task.description:<26}"),
            BarColumn(12),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            stage = Stage(bar, bar.add_task(name, total=None, note=""))
            yield stage
        self.console.print(f"  {name:<26} {time.monotonic() - started:6.1f} s", highlight=False)
