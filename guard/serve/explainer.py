"""Explanations while the guard serves: for its operator alone, and always behind the requests that callers wait for.

How it works. Items are explained one by one. Each waits until the device has nothing else to do, and after each there
is a pause as long as it took; so a request that comes meanwhile waits for one item at most, and explanations take no
more than half of what traffic leaves idle. Under full load none is given, and the operator's deadline passes.

Rule 1: no explanation runs while a request waits for the device, and no two at once.
Rule 2: what can wait is bounded: calls here, and items in each call.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from guard.errors import Expired, Overloaded
from guard.explanation import Explanation
from guard.serve.guarded_model import GuardedModel

MAX_ITEMS = 16  # of a call
MAX_CALLS = 8  # that wait or are explained
MAX_WAIT_S = 60.0  # for a device that is never idle, where the operator names no deadline
EXPIRED = (
    "the deadline passed before the device had nothing else to do: explanations wait for all requests; ask again when "
    "there is less traffic, or read the input with the bundle elsewhere (guard.open(bundle).explain)"
)


@dataclass(eq=False)
class Explainer:
    """The one place at which explanations are made."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0

    async def explain(self, guarded: GuardedModel, images: NDArray[Any], deadline: float) -> list[Explanation]:
        """Explain wire inputs [item, ...] until `deadline` of time.monotonic().

        Raises:
            Overloaded: too many calls wait already.
            Expired: the deadline passed first.
            BreakerOpen: the engine is broken.
            Unchecked: the bundle is not loaded yet.
        """
        if self.calls >= MAX_CALLS:
            raise Overloaded(f"{self.calls} calls wait for explanations already; ask again when they are over")
        guarded.inspector.check(len(images))
        self.calls += 1
        try:
            async with asyncio.timeout(max(0.0, min(deadline - time.monotonic(), MAX_WAIT_S))):
                return [await self.one(guarded, images[place : place + 1]) for place in range(len(images))]
        except TimeoutError as error:
            raise Expired(EXPIRED) from error
        finally:
            self.calls -= 1

    async def one(self, guarded: GuardedModel, image: NDArray[Any]) -> Explanation:
        """Explain one item when the device is idle, and rest as long as that took."""
        engine = guarded.loaded.engine
        async with self.turn:
            await engine.thread.until_idle()
            began = time.monotonic()
            found = await engine.explain(image)
            await asyncio.sleep(time.monotonic() - began)
        return found
