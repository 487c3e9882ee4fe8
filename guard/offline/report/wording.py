"""How an evaluation's findings read, on the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable

from guard.offline.attacks.attack import Family
from guard.offline.findings.evaluation import AdaptiveRow, Evaluation
from guard.offline.findings.intervals import Area, Promise, Rate

NONE = "–"


def percent(value: float, decimals: int = 0) -> str:
    return NONE if math.isnan(value) else f"{100 * value:.{decimals}f}%"


def bracket(rate: Rate, decimals: int = 0) -> str:
    """The interval, in per cent."""
    return f"[{100 * rate.low:.{decimals}f}, {100 * rate.high:.{decimals}f}]"


def rate_text(rate: Rate | None, decimals: int = 0) -> str:
    """A share and its interval; a dash where it was not promised, or of nothing."""
    return NONE if rate is None or rate.items == 0 else f"{percent(rate.value, decimals)} {bracket(rate, decimals)}"


def decimal(value: float) -> str:
    """Three places, no leading zero."""
    return NONE if math.isnan(value) else "1.00" if value >= 0.9995 else f"{value:.3f}".lstrip("0")


def area_text(area: Area) -> str:
    return NONE if math.isnan(area.value) else f"{decimal(area.value)} [{decimal(area.low)}, {decimal(area.high)}]"


def promise_notes(evaluation: Evaluation) -> list[str]:
    """Why a rate has no numbers, and what few items make of a promise."""
    return [f"At {promise_text(p)} nothing is stated: {p.reason}." for p in evaluation.promises if p.reason is not None]


def promise_text(promise: Promise) -> str:
    return f"{100 * promise.rate:g}%"


def proof_text(row: AdaptiveRow) -> str:
    """What the attack does to detectors known to be broken."""
    return ", ".join(f"{p.detector} {percent(p.success.value)}" for p in row.proof) or "none of them is in the bundle"


def gap_text(row: AdaptiveRow) -> str:
    """How far what was attacked is what is served."""
    parts = [f"attacked side and served verdict differ on {percent(row.disagreement, 1)} of the items"]
    if row.risk_gap:
        parts.append(f"their risks by at most {row.risk_gap:.2g}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def thin_text(families: Iterable[str]) -> str:
    """What a star beside a row means."""
    query = Family.QUERY in set(families)
    fewer = f"; {Family.QUERY.min_verified_items} where only answers are asked for" if query else ""
    return f"fewer than {Family.SINGLE_STEP.min_verified_items} items{fewer}: an indication"
