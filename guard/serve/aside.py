"""The seam to work off the event loop: inference hands it what may take long, and a door runs it on its threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

Found = TypeVar("Found")


class Aside(Protocol):
    """A runner of work that is done off the event loop where it may take long."""

    async def __call__(self, size_bytes: int, work: Callable[[], Found]) -> Found: ...
