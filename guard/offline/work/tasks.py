"""Independent tasks and what computes them: the one seam between long work and threads or a cluster.

Rule 1: a task's result follows from its function, what all tasks share and its own part: not from where it is computed,
nor from what is computed beside it.
Rule 2: results are kept by the process that asked, each as soon as it is there; what was kept is never computed again.

How it works. `Tasks` say what is to be computed; an `Executor` computes it: `Threads` (parallel.py) in this process, or
a Ray cluster (ray_cluster.py). An executor that computes elsewhere sends the function by its name, what is shared once
to each process, and each part with its task. So the function is one of a module's own, and shared values and parts are
ones that `shipping.py` can send.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from guard.errors import ConfigError
from guard.offline.work.store import Arrays, KeptArrays

T = TypeVar("T")


def ignore(*given: object) -> None:
    """Do nothing, in the place of a callback."""


class Watch(Protocol):
    """Connection of a running task to the process that waits for it."""

    def look(self) -> None:
        """Raise an exception once the task is to end without a result."""
        ...

    def count(self, steps: int) -> None:
        """Report that so many further steps are done."""
        ...

    def note(self, text: str) -> None:
        """Report what is being done."""
        ...


@dataclass(frozen=True, eq=False)
class Tasks(Generic[T]):
    """Independent tasks of one kind."""

    work: Callable[[Any, Any, Watch], T]  # (shared, part, watch): a function of a module
    shared: Any  # may serve as a cache: a process that computes several tasks has one
    parts: Sequence[Any]  # one a task
    threads: int = 1  # that torch has within a task
    alone: bool = False  # not beside others of one process: its code is not safe for threads
    accelerated: bool = False  # on a GPU of its own where the executor has any


@dataclass(frozen=True)
class TaskCallbacks(Generic[T]):
    """Callbacks of a run of tasks, called in the process that waits for it."""

    kept: Callable[[int, T], object] = ignore  # as soon as a task's result is there
    done: Callable[[int], object] = ignore  # after that, by the task's number
    counted: Callable[[int], object] = ignore  # steps by which the work of all tasks together moved on
    noted: Callable[[str], object] = ignore


class Executor(Protocol):
    """Threads or a cluster that compute tasks."""

    @property
    def workers(self) -> int:
        """Number of tasks of one thread that are computed at once."""
        ...

    @property
    def processes(self) -> int:
        """Number of tasks that are computed at once where each needs a process of its own."""
        ...

    @property
    def max_threads(self) -> int:
        """Largest number of threads that a task can have."""
        ...

    @property
    def elsewhere(self) -> bool:
        """Whether tasks are computed in other processes, to which everything has to be sent."""
        ...

    def device(self, *, accelerated: bool) -> str:
        """Return the device, cpu or cuda, on which a task of this kind is computed."""
        ...

    def run(self, tasks: Tasks[T], listener: TaskCallbacks[T] | None = None) -> list[T]:
        """Return the results in the order of the parts, whichever is there first.

        The first task that fails ends the others, and its exception is raised; so does an interrupt.
        """
        ...


def check_sendable(executor: Executor | None, *, closed: bool) -> None:
    """Check that this work can be computed elsewhere if it is to be. Raises ConfigError for a closed model."""
    if closed and executor is not None and executor.elsewhere:
        raise ConfigError(
            "--ray with --answers: a closed model is asked from this machine alone, which keeps what it answered; "
            "leave --ray out"
        )


def resumed(
    executor: Executor,
    tasks: Tasks[Arrays],
    places: Sequence[KeptArrays],
    *,
    anew: bool = False,
    done: Callable[[int], object] = ignore,
    counted: Callable[[int], object] = ignore,
) -> list[Arrays]:
    """Return the arrays of each task from its place, or compute them and keep them there.

    `anew`: compute all of them. `done` receives the number of each task, kept or computed.
    """
    found = [None if anew else place.read() for place in places]
    for number, one in enumerate(found):
        if one is not None:
            done(number)
    missing: dict[Path, list[int]] = {}  # tasks of one place have one result
    for number, one in enumerate(found):
        if one is None:
            missing.setdefault(places[number].file, []).append(number)
    if missing:
        wanted = list(missing.values())

        def finished(place: int) -> None:
            for number in wanted[place]:
                done(number)

        listener: TaskCallbacks[Arrays] = TaskCallbacks(
            kept=lambda place, arrays: places[wanted[place][0]].write(arrays), done=finished, counted=counted
        )
        parts = [tasks.parts[numbers[0]] for numbers in wanted]
        for numbers, made in zip(wanted, executor.run(replace(tasks, parts=parts), listener), strict=True):
            for number in numbers:
                found[number] = made
    return [one for one in found if one is not None]
