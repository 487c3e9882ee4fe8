"""p-values and an operator's settings -> a verdict. Pure: no clock, no network, no model.

Rule 1: a caller can never learn from the verdict more than PASS or REJECT, unless the operator tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Mode = Literal["enforce", "flag", "shadow", "off"]
OnFailure = Literal["closed", "open"]
Rows = Literal["any", "request"]


class Action(StrEnum):
    """What happens to an item, or to the request that carries it; later members are the graver."""

    PASS = "pass"
    FLAG = "flag"
    REPAIR = "repair"
    REJECT = "reject"


GRAVITY = {action: rank for rank, action in enumerate(Action)}


@dataclass(frozen=True)
class Policy:
    """What the operator promised: which share of clean items may be rejected, and which flagged."""

    reject_rate: float = 0.01
    flag_rate: float = 0.05
    mode: Mode = "enforce"
    on_failure: OnFailure = "closed"
    rows: Rows = "any"
    repair: str | None = None  # the denoiser through which flagged items are cleaned

    def judge(self, p_value: float) -> Action:
        """The action for one item, whatever the mode: in `shadow` it is what would have happened."""
        if p_value <= self.reject_rate:
            return Action.REJECT
        if p_value <= self.flag_rate:
            return Action.REPAIR if self.repair else Action.FLAG
        return Action.PASS

    def enact(self, judged: Action) -> Action:
        """What the mode lets happen: `flag` never rejects or repairs, `shadow` changes nothing for anybody."""
        if self.mode in ("shadow", "off"):
            return Action.PASS
        if self.mode == "flag" and judged is not Action.PASS:
            return Action.FLAG
        return judged


@dataclass(frozen=True)
class Verdict:
    """What was decided for a request: each item's action, and the gravest of them."""

    items: tuple[Action, ...]
    request: Action


def decide(p_values: Sequence[float], policy: Policy, *, request_p_value: float | None = None) -> Verdict:
    """Judge the items of one request [item].

    `request_p_value` is the p-value of the request's riskiest item against requests of its size; it is needed, and
    decides for the request as a whole, when `policy.rows` is "request".
    """
    items = tuple(policy.judge(p) for p in p_values)
    if policy.rows == "request":
        if request_p_value is None:
            raise ValueError("rows = 'request' judges the request as a whole: its p-value is missing")
        return Verdict(items, policy.judge(request_p_value))
    return Verdict(items, max(items, key=GRAVITY.__getitem__, default=Action.PASS))
