"""For maintainers: the most memory that a fresh process holds which opens a program and runs it, MiB.

    python -m tests.bench.resident PROGRAM.onnx [--items N] [--calls N]

Inputs are random; one thread. Nothing is imported but what loads and runs a graph.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from guard.session import Session


def peak_mib() -> float:
    """Return the most that this process has held; unlike `ru_maxrss` it forgets who started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def peak_of(program: Path, items: int) -> float:
    """Return the peak of a process of its own that runs a program."""
    command = [sys.executable, "-m", __name__, str(program), "--items", str(items)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--items", type=int, default=32, help="in a call")
    parser.add_argument("--calls", type=int, default=3)
    given = parser.parse_args()
    session = Session(given.program, device="cpu", threads=1)
    shape = [size for size in session.session.get_inputs()[0].shape[1:] if isinstance(size, int)]
    images = np.random.default_rng(0).random((given.items, *shape), dtype=np.float32)
    names = [one.name for one in session.session.get_outputs()]
    for _ in range(given.calls):
        session.run(names, images)
    print(f"{peak_mib():.1f}")


if __name__ == "__main__":
    main()
