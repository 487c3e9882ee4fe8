"""The policy: p-values and an operator's settings become a verdict. Pure: no clock, no network, no model.

Rule 1: a caller learns no more of a verdict than PASS or REJECT, unless the operator has set that it may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Mode = Literal["enforce", "flag", "shadow", "off"]
OnFailure = Literal["closed", "open"]
Rows = Literal["any", "request"]
QueryMemoryUse = Literal["off", "watch", "reject"]
Forward = Literal["after", "before", "together"]
Shadow = Literal["inline", "queue"]


class Action(StrEnum):
    """The action for an item, or for the request that carries it; later members are the graver."""

    PASS = "pass"
    FLAG = "flag"
    REPAIR = "repair"
    REJECT = "reject"


GRAVITY = {action: rank for rank, action in enumerate(Action)}


@dataclass(frozen=True)
class Policy:
    """The operator's settings: which share of clean items may be rejected or flagged, and what is done about it."""

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
        """The action that the mode lets happen: `flag` never rejects or repairs, `shadow` and `off` let all pass."""
        if self.mode in ("shadow", "off"):
            return Action.PASS
        if self.mode == "flag" and judged is not Action.PASS:
            return Action.FLAG
        return judged


@dataclass(frozen=True)
class Verdict:
    """The decision on a request: each item's action, and the request's (the gravest of them, or judged as a whole)."""

    items: tuple[Action, ...]
    request: Action


def repaired(verdict: Verdict, stable: Sequence[bool]) -> Verdict:
    """The verdict on a request whose repairs were tried: an item whose repaired answer is not stable is rejected.

    `stable` [item] is True where nothing was repaired. One item that cannot be repaired rejects the request, also where
    requests are judged as a whole: which of its items is the suspicious one is not known.
    """
    items = tuple(item if good else Action.REJECT for item, good in zip(verdict.items, stable, strict=True))
    return Verdict(items, verdict.request if all(stable) else Action.REJECT)


def decide(p_values: Sequence[float], policy: Policy, *, request_p_value: float | None = None) -> Verdict:
    """Judge the items of one request by their p-values [item].

    `request_p_value` is the p-value of the request's riskiest item against requests of its size; it is needed, and
    decides for the request as a whole, when `policy.rows` is "request".
    """
    items = tuple(policy.judge(p) for p in p_values)
    if policy.rows == "request":
        if request_p_value is None:
            raise ValueError("rows = 'request' judges the request as a whole: its p-value is missing")
        return Verdict(items, policy.judge(request_p_value))
    return Verdict(items, max(items, key=GRAVITY.__getitem__, default=Action.PASS))
