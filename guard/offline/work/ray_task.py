"""Code that a worker of a Ray cluster runs: it computes one task, and reports meanwhile.

Rule 1: a worker computes with the code and the packages of the process that asked, or not at all.
Rule 2: a worker writes no file: results travel as bytes through the object store, so of two attempts at one task, which
a lost connection can leave running side by side, one result is kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import guard
from guard.errors import ConfigError
from guard.offline.work.parallel import torch_threads
from guard.offline.work.shipping import from_bytes, to_bytes
from guard.offline.work.tasks import Watch

# What a result's bits follow from, beside the guard's own code.
PACKAGES = ("ray", "torch", "numpy", "scipy", "scikit-learn", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu")
HELD_VALUES = (
    2  # shared values that a process holds: one that is computed with, and one that the next tasks come back to
)
REPORT_S = 0.5  # between two reports of a task


@dataclass(frozen=True)
class TaskSettings:
    """What a worker is told about a task, beside what it computes."""

    shared: str  # digest of the shared value
    threads: int
    versions: Mapping[str, str]  # that it must have
    run: int  # the number of the call that the task belongs to, for its reports
    number: int


def computed(shared: list[Any], part: bytes, settings: TaskSettings, board: Any) -> bytes:
    """Compute a task and return its result as bytes; `shared` holds a reference to the function and its shared value.

    Raises ConfigError where this worker has other versions.
    """
    check_versions(settings.versions)
    with torch_threads(settings.threads):
        work, value = opened(settings.shared, shared[0])
        watch = Reporter(board, settings.run, settings.number)
        found = work(value, from_bytes(part), watch)
        watch.close()
        return to_bytes(found)


HELD: OrderedDict[str, tuple[Any, Any]] = OrderedDict()


def opened(digest: str, reference: Any) -> tuple[Any, Any]:
    """Return a function and its shared value, fetched once for all tasks of this process."""
    if digest not in HELD:
        import ray

        HELD[digest] = from_bytes(ray.get(reference))
        while len(HELD) > HELD_VALUES:
            HELD.popitem(last=False)
    HELD.move_to_end(digest)
    return HELD[digest]


class Reporter(Watch):
    """Connection of a task to the board; Ray itself ends a task that is not wanted any more."""

    def __init__(self, board: Any, run: int, number: int) -> None:
        self.board, self.run, self.number = board, run, number
        self.steps, self.reported = 0, 0.0

    def look(self) -> None:
        """Go on: a task that is cancelled is interrupted by Ray."""

    def count(self, steps: int) -> None:
        self.steps += steps
        if time.monotonic() - self.reported >= REPORT_S:
            self.close()

    def note(self, text: str) -> None:
        self.board.note.remote(self.run, text)

    def close(self) -> None:
        """Report all steps that were counted."""
        self.reported = time.monotonic()
        if self.steps:
            self.board.count.remote(self.run, self.number, self.steps)


class Board:
    """Actor that holds what the tasks of a run report: steps by task, so that a second attempt counts once."""

    def __init__(self) -> None:
        self.run = -1
        self.steps: dict[int, int] = {}
        self.text = ""

    def begin(self, run: int) -> None:
        """Forget an earlier run; what its tasks still report is left unread."""
        if run > self.run:
            self.run, self.steps, self.text = run, {}, ""

    def count(self, run: int, number: int, steps: int) -> None:
        """Hold the steps that a task has done so far."""
        self.begin(run)
        if run == self.run:
            self.steps[number] = steps

    def note(self, run: int, text: str) -> None:
        """Hold what a task is doing."""
        self.begin(run)
        if run == self.run:
            self.text = text

    def read(self, run: int) -> tuple[int, str]:
        """Return the steps of all tasks of a run, and what the last of them said."""
        return (sum(self.steps.values()), self.text) if run == self.run else (0, "")


@cache
def versions() -> Mapping[str, str]:
    """Return the versions that a result's bits follow from, by name; the guard's is a digest of its code."""
    found = {"python": platform.python_version(), "guard": code_of(Path(guard.__file__).parent)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def code_of(folder: Path) -> str:
    """Return a short digest of the source files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def check_versions(wanted: Mapping[str, str]) -> None:
    """Check that this process has these versions. Raises ConfigError, which names those that differ."""
    found = versions()
    if differ := [f"{name} {found.get(name)} in place of {one}" for name, one in wanted.items() if found[name] != one]:
        raise ConfigError(
            f"worker {platform.node()} of the Ray cluster has {', '.join(differ)}; install there what is installed "
            "here, the same wheel of the guard included: results must not depend on where they are computed"
        )
