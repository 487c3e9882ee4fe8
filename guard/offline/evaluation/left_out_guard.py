"""A guard that was fitted without one family of attacks."""

from __future__ import annotations

from dataclasses import dataclass

from guard.runtime import Runtime


@dataclass(frozen=True)
class LeftOut:
    """A guard that was fitted without one family of attacks, at work."""

    family: str
    fitted_on: tuple[str, ...]  # labels of the attacks that were left
    runtime: Runtime
