"""A Ray cluster of one node in a network namespace of its own: nothing outside it is reached, and no port is taken.

Ray listens on all of a machine's addresses, and whoever reaches it can run code. Here there is but a loopback device.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.side import ROOT, shelf

ADDRESS = "127.0.0.1:6379"  # of the head, within the namespace
START_S = 240.0  # until it listens; a machine that is busy takes long
STORE_BYTES = 200_000_000


def can_be_made() -> bool:
    """Whether this user may make network namespaces."""
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return made.returncode == 0


@dataclass(frozen=True)
class Node:
    """A running head with so many CPUs, and the namespace that it runs in."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    @property
    def inside(self) -> list[str]:
        """What a command begins with that is to run in the namespace."""
        return ["nsenter", "--target", str(self.process.pid), "--net", "--"]

    def start(self, command: Sequence[str], **settings: Any) -> subprocess.Popen[str]:
        """Start a command in the namespace; its two outputs are one text."""
        return subprocess.Popen(
            [*self.inside, *command],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **settings,
        )

    def processes(self, title: str = "") -> list[int]:
        """The processes in the namespace whose title begins so."""
        own = Path(f"/proc/{self.process.pid}/ns/net").readlink()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (folder / "ns" / "net").readlink() == own and (folder / "cmdline").read_text().startswith(title):
                    found.append(int(folder.name))
        return found


@contextmanager
def ray_node(cpus: int = 2, *arguments: str) -> Iterator[Node]:
    """Start a head with so many CPUs, and end everything in its namespace afterwards."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets' paths have to be short
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{shelf('ray')}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": folder,
    }
    start = f"ip link set lo up && exec {sys.executable} -m ray.scripts.scripts start --head --block --num-cpus {cpus}"
    settings = f"--temp-dir {folder} --object-store-memory {STORE_BYTES} --include-dashboard false"
    with Path(folder, "output").open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", " ".join([start, settings, *arguments])],
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    node = Node(process, environment)
    try:
        wait_for(node, Path(folder, "output"))
        yield node
    finally:
        for pid in node.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(node: Node, output: Path) -> None:
    """Wait until the head says that it runs."""
    deadline = time.monotonic() + START_S
    while "Ray runtime started" not in output.read_text():
        if node.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the Ray node did not start:\n{output.read_text()}")
        time.sleep(0.05)
