"""A `guard serve` that runs here: its command line and environment, from which its settings are read again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from guard.serve.doctor.machine import Machine, Process


@dataclass(frozen=True)
class RunningGuard:
    """A process that runs `guard serve`, as far as this user may look at it."""

    process: Process
    flags: tuple[str, ...]  # behind `guard serve`
    environment: dict[str, str]
    folder: Path  # that relative paths begin at


def running_guards(machine: Machine) -> list[RunningGuard]:
    """List the guards that run here and belong to this user."""
    found = []
    for process in machine.processes():
        flags = serve_flags(process.words)
        if flags is None:
            continue
        with suppress(OSError):
            place = machine.root / f"proc/{process.pid}"
            pairs = (pair.partition("=") for pair in (place / "environ").read_bytes().decode().split("\0"))
            found.append(RunningGuard(process, flags, {name: value for name, _, value in pairs if name}, place / "cwd"))
    return found


def serve_flags(words: Sequence[str]) -> tuple[str, ...] | None:
    """The words behind `guard serve` in a command line (`guard` by any path, or `python -m guard`); None without it."""
    for at, (word, following) in enumerate(pairwise(words)):
        if Path(word).name == "guard" and following == "serve":
            return tuple(words[at + 2 :])
    return None
