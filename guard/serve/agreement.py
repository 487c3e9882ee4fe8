"""The share of recent items for which bundle and upstream have named different classes."""

from __future__ import annotations

from collections import deque

WINDOW_ITEMS = 256
MIN_COMPARED_ITEMS = 64  # below which no share is given: one odd answer is no incident


class Agreement:
    """The share of disagreement over the last `WINDOW_ITEMS` compared items, counted by whole requests."""

    def __init__(self) -> None:
        self.requests: deque[tuple[int, int]] = deque()  # items that differed, and items
        self.different = self.items = 0

    def note(self, different: int, items: int) -> float | None:
        """Add a request and return the share, or None while too few items were compared."""
        self.requests.append((different, items))
        self.different += different
        self.items += items
        while self.items - self.requests[0][1] >= WINDOW_ITEMS:
            gone, count = self.requests.popleft()
            self.different -= gone
            self.items -= count
        return self.different / self.items if self.items >= MIN_COMPARED_ITEMS else None
