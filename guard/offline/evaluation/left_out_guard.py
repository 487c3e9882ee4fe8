"""A guard that was fitted without one family of attacks."""

from __future__ import annotations

from dataclasses import dataclass

from guard.cascade import Cascade


@dataclass(frozen=True)
class LeftOut:
    """A guard that was fitted without one family of attacks, at work."""

    family: str
    fitted_on: tuple[str, ...]  # labels of the attacks that were left
    cascade: Cascade
    identity: str  # of what decides in it
    served_detectors: bool = False  # for want of families to choose by; they were chosen with this one, too
