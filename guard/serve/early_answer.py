"""The model server's answer to a request that is still being inspected, for `forward = "together"`.

Rule 1: the answer is held until the verdict; an error of the model server is an answer, too.
Rule 2: what the verdict does not let through is cancelled, and so is what the client no longer waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")

SEQUENCE_PARAMETERS = frozenset({"sequence_id", "sequence_start", "sequence_end"})


class EarlyAnswer(Generic[Answer]):
    """A call to the model server that may begin before the verdict."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, Answer]]) -> None:
        self.ask = ask
        self.asking: asyncio.Task[Answer] | None = None
        self.wanted = False  # by the verdict

    @property
    def has_begun(self) -> bool:
        return self.asking is not None

    def begin(self) -> None:
        """Ask now, and go on."""
        self.asking = asyncio.create_task(self.ask())

    async def get(self) -> Answer:
        """The answer, which is asked for now unless that has begun. Raises as `ask`."""
        if self.asking is None:
            return await self.ask()
        self.wanted = True
        return await self.asking

    def give_up(self) -> None:
        """Cancel the call unless it is over; its answer, or error, is dropped."""
        if self.asking is not None:
            self.asking.cancel()
            self.asking.add_done_callback(drop)


def drop(asking: asyncio.Task[Any]) -> None:
    if not asking.cancelled():
        asking.exception()


def in_sequence(parameters: Iterable[str]) -> bool:
    """Whether a request with parameters of these names is one of a sequence, whose model keeps a state."""
    return not SEQUENCE_PARAMETERS.isdisjoint(parameters)
