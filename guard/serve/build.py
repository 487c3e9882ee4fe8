"""The versions of the guard and of what it stands on, for metrics and for operators."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

MISSING = "not installed"
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # one of them is installed


def guard_version() -> str:
    return version_of("inference-guard")


@cache
def version_of(*distributions: str) -> str:
    """The version of the first distribution that is installed; it is read once a process."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return MISSING


def build_labels() -> dict[str, str]:
    """The labels of `guard_build_info`."""
    return {
        "version": guard_version(),
        "python": platform.python_version(),
        "grpcio": version_of("grpcio"),
        "onnxruntime": version_of(*RUNTIMES),
    }
