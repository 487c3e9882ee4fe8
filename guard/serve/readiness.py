"""Whether the guard is ready, and if not, why: one truth for ServerReady, grpc.health.v1, the metrics and the log.

Rule 1: liveness is not here: it is the guard's own and never depends on anybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

PARTS = ("drain", "listener", "engine", "bundle", "upstream")

Listener = Callable[[str | None], None]


class Readiness:
    """A reason for each part that is not ready; ready when there is none."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {
            "engine": "the programs are being loaded",
            "upstream": "the model server was not reached yet",
        }
        self.listeners: list[Listener] = []

    @property
    def because(self) -> str | None:
        """Why the guard is not ready; None when it is."""
        for part in PARTS:
            if (reason := self.reasons.get(part)) is not None:  # one look: other threads read here, too
                return reason
        return None

    def part(self, name: str) -> str | None:
        return self.reasons.get(name)

    def say(self, part: str, reason: str | None) -> None:
        """State what holds for one part, and tell the listeners if that changes anything."""
        before: Mapping[str, str] = dict(self.reasons)
        if reason is None:
            self.reasons.pop(part, None)
        else:
            self.reasons[part] = reason
        if self.reasons != before:
            for listener in self.listeners:
                listener(self.because)
