"""The CPUs and the memory that the container leaves this process, read from its control groups.

How it works: Linux writes a group's limits into files of a folder. Version 1 has a tree of folders for each controller,
version 2 one tree for all, and a host may mount both. `/proc/self/cgroup` names this process' folder in each tree,
`/proc/self/mountinfo` says where the tree is mounted. Limits nest, so every folder from this process' own up to the
mounted root is read and the smallest limit holds. For example 2.5 CPUs in the pod and 4 in the container: 2.

Rule 1: nothing here raises; what is missing, unreadable or nonsense is no limit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
UNLIMITED_BYTES = 2**60  # version 1 writes "no limit" as a number next to 2**63, rounded down to pages
DEFAULT_PERIOD_US = 100_000  # of a quota that is written without one
OCTAL = re.compile(r"\\([0-7]{3})")  # mountinfo writes a space as \040


def cpus(root: Path = ROOT) -> int:
    """The CPUs that this process may use: the least of affinity and its groups' quotas, rounded down, at least 1."""
    quotas = [quota for folder in folders("cpu", root) if (quota := cpu_quota(folder)) is not None]
    return max(1, int(min([affinity(), *quotas])))


def memory_bytes(root: Path = ROOT) -> int | None:
    """The smallest memory limit of the groups that this process is in; None where there is none."""
    limits = [limit for folder in folders("memory", root) if (limit := memory_limit(folder)) is not None]
    return min(limits, default=None)


def affinity() -> int:
    """The number of CPUs that the scheduler may put this process on."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on every system that Python runs on
        return os.cpu_count() or 1


def cpu_quota(folder: Path) -> float | None:
    """The CPU time that a folder allows, in CPUs: `cpu.max` is version 2, `cpu.cfs_*` version 1; None: no limit."""
    quota, period = [*words(folder / "cpu.max"), "", ""][:2]
    if not quota:
        quota = " ".join(words(folder / "cpu.cfs_quota_us"))
        period = " ".join(words(folder / "cpu.cfs_period_us"))
    quota_us, period_us = positive(quota), positive(period) or DEFAULT_PERIOD_US
    return None if quota_us is None else quota_us / period_us


def memory_limit(folder: Path) -> int | None:
    """The bytes that a folder allows: `memory.max` is version 2, `memory.limit_in_bytes` version 1; None: no limit."""
    written = words(folder / "memory.max") or words(folder / "memory.limit_in_bytes")
    limit = positive(" ".join(written))
    return None if limit is None or limit >= UNLIMITED_BYTES else limit


def positive(text: str) -> int | None:
    """Parse a number above zero; None for `max`, -1 and any other text that stands for no limit."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) > 0 else None


@dataclass(frozen=True)
class Mount:
    """A mounted tree of groups: the folder of the tree that is seen at a path of this file system."""

    version: int
    controllers: frozenset[str]  # of version 1; version 2 has them all in one tree
    top: PurePosixPath  # the tree's folder that is mounted; "/": the whole tree
    path: str


def folders(controller: str, root: Path) -> Iterator[Path]:
    """The folders that may limit `controller`: in every tree this process' own, and all above it that are mounted."""
    found = mounts(root)
    for line in lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        trees = [m for m in found if (controller in m.controllers if names else m.version == 2)]
        if trees:
            yield from upwards(PurePosixPath(group), trees, root)


def upwards(group: PurePosixPath, trees: list[Mount], root: Path) -> Iterator[Path]:
    """The folders of `group` and all its parents within the mount that shows it.

    In a container the group's name may be the host's while the mount shows the container's part of the tree only; then
    the mounted folder alone is taken.
    """
    shown = [tree for tree in trees if group.is_relative_to(tree.top) and ".." not in group.parts]
    tree = (shown or trees)[0]
    below = group.relative_to(tree.top) if shown else PurePosixPath()
    place = root / tree.path.lstrip("/")
    yield from (place / folder for folder in (below, *below.parents))


def mounts(root: Path) -> list[Mount]:
    """The trees of control groups that are mounted, as `/proc/self/mountinfo` lists them (see man 5 proc)."""
    found = []
    for line in lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) >= 5 and right[0] in ("cgroup", "cgroup2"):
            version = 2 if right[0] == "cgroup2" else 1
            controllers = frozenset(right[-1].split(",")) if version == 1 else frozenset()
            found.append(Mount(version, controllers, PurePosixPath(unescaped(left[3])), unescaped(left[4])))
    return found


def unescaped(text: str) -> str:
    return OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def words(file: Path) -> list[str]:
    return " ".join(lines(file)).split()


def lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):  # ValueError: a path with a zero byte
        return []
