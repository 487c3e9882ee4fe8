"""Slow preparations that all processes of one test run share: the first to need one makes it, the others wait for it.

Rule 1: what was made is not changed by any test; one that has to change it works on a copy.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, called once in this run of pytest; a folder that it left unfinished is removed."""
    shared = of_all_processes(factory) / "shared"
    shared.mkdir(exist_ok=True)
    folder, made = shared / name, shared / f"{name}.made"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given up by a process that ends, however it ends
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def of_all_processes(factory: pytest.TempPathFactory) -> Path:
    """The run's temporary folder, in which each process of pytest-xdist has its own."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
