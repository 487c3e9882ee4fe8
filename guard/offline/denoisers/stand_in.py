"""What an attacker differentiates in place of a served step that has no useful derivative."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StandIn:
    """One served step, and what stands in for its derivative; values stay those of the step."""

    step: str
    derivative: str

    def __str__(self) -> str:
        return f"{self.step}: {self.derivative}"
