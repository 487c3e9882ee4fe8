"""Stand-in for a served step without a useful derivative: what an attacker differentiates in its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StandIn:
    """Served step, and what replaces its derivative; values stay those of the step."""

    step: str
    derivative: str

    def __str__(self) -> str:
        return f"{self.step}: {self.derivative}"
