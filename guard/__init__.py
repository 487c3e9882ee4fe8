"""The guard: a shield for production classifiers, in front of any Open Inference Protocol server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from guard.local_guard import LocalGuard


def open(bundle: str | Path, **options: Any) -> LocalGuard:
    """Open a bundle to inspect inputs in this process; the options are those of `LocalGuard.open`, which raises.

    Nothing is imported before: a library that only needs a name of this package pays for no programs.
    """
    from guard.local_guard import LocalGuard

    return LocalGuard.open(bundle, **options)
