"""What /proc tells of a process: its threads by kind, and the processor time that it has used."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TICKS_S = os.sysconf("SC_CLK_TCK")


def threads_of(pid: int) -> Counter[str]:
    """Threads by name; gRPC names its own, `unnamed` are those of Python, ONNX Runtime and OpenBLAS."""
    process, found = Path(f"/proc/{pid}"), Counter[str]()
    own = (process / "comm").read_text(encoding="utf-8")
    for task in process.glob("task/*"):
        try:
            name = (task / "comm").read_text(encoding="utf-8")
        except OSError:  # it has ended meanwhile
            continue
        found["unnamed" if name == own else name.strip()] += 1
    return found


def processor_s(pid: int) -> float:
    """Seconds of processor time that the process has used, in its own code and in the kernel, to a tick of 10 ms."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / TICKS_S


@contextmanager
def pinned(cpus: set[int]) -> Iterator[None]:
    """Within the block this thread, and what it starts, may run on these CPUs only; as under `taskset`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
