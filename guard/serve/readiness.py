"""The guard's readiness, with a reason if it is not ready: one truth for ServerReady, health, metrics and log.

Rule 1: liveness is decided elsewhere: it is the guard's own and never depends on another process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

PARTS = ("drain", "listener", "engine", "bundle", "upstream")

Listener = Callable[[str | None], None]


class Readiness:
    """The reasons of the parts that are not ready; the guard is ready when there are none."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {
            "engine": "the programs are being loaded",
            "upstream": "the model server was not reached yet",
        }
        self.listeners: list[Listener] = []

    @property
    def because(self) -> str | None:
        """The reason why the guard is not ready; None when it is."""
        for part in PARTS:
            if (reason := self.reasons.get(part)) is not None:  # one look-up: other threads read here, too
                return reason
        return None

    def part(self, name: str) -> str | None:
        return self.reasons.get(name)

    def say(self, part: str, reason: str | None) -> None:
        """Set the reason of one part (None: it is ready), and call the listeners if that changes anything."""
        before: Mapping[str, str] = dict(self.reasons)
        if reason is None:
            self.reasons.pop(part, None)
        else:
            self.reasons[part] = reason
        if self.reasons != before:
            for listener in self.listeners:
                listener(self.because)
