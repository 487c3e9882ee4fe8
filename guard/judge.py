"""The judge: readings of a request's items become an inspection. Pure, so that every way in judges alike.

Rule 1: the sidecar and a Python caller ask this one judge; there is no second path from readings to a verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from guard.calibration import Calibration, smallest_rate
from guard.cascade import Readings
from guard.errors import Uninspectable
from guard.fusion import Floats
from guard.policy import Action, Policy, Verdict, decide


@dataclass(frozen=True, eq=False)
class Inspection:
    """The result of inspecting the items of one request."""

    readings: Readings
    verdict: Verdict
    enacted: Action  # what the mode makes of the request's verdict
    request_p_value: float | None  # where requests are judged as a whole
    detectors: tuple[str, ...]  # of the readings' scores, in their order
    ties: Floats = field(repr=False)  # [item] what breaks ties of risks

    @property
    def worst(self) -> int:
        """The index of the item with the smallest p-value."""
        return int(self.readings.p_value.argmin())


@dataclass(frozen=True)
class Judge:
    """A policy over one calibration; it holds nothing that changes, so threads may share it."""

    policy: Policy
    calibration: Calibration

    def judged(self, readings: Readings, calibration: Calibration, ties: Floats) -> Inspection:
        """The inspection of items with these readings, which the calibration has ranked."""
        whole = self.whole(readings, calibration)
        verdict = decide(readings.p_value.tolist(), self.policy, request_p_value=whole)
        return Inspection(readings, verdict, self.policy.enact(verdict.request), whole, calibration.detectors, ties)

    def check_judgeable(self, items: int) -> None:
        """Raise Uninspectable for a request that is judged as a whole and too large ever to be rejected."""
        if self.policy.rows == "request" and smallest_rate(self.calibration.items // items) > self.policy.reject_rate:
            most = self.calibration.items // (math.ceil(1 / self.policy.reject_rate) - 1)
            raise Uninspectable(
                f"a request of {items} items cannot be judged as a whole at the promised rate; send at most {most}"
            )

    def whole(self, readings: Readings, calibration: Calibration) -> float | None:
        """The p-value of the riskiest item among requests of as many; None unless requests are judged as a whole."""
        if self.policy.rows != "request":
            return None
        return calibration.request_p_value(float(readings.risk.max()), len(readings.risk))
