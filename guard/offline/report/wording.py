"""The wording of an evaluation's findings, on the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable

from guard.offline.attacks.attack import Family
from guard.offline.findings.attack_names import budgets_text
from guard.offline.findings.evaluation import AdaptiveRow, AttackRow, BudgetPart, Evaluation
from guard.offline.findings.intervals import Area, Promise, Rate

NONE = "–"


def percent(value: float, decimals: int = 0) -> str:
    return NONE if math.isnan(value) else f"{100 * value:.{decimals}f}%"


def bracket(rate: Rate, decimals: int = 0) -> str:
    """Return the interval in brackets, in per cent."""
    return f"[{100 * rate.low:.{decimals}f}, {100 * rate.high:.{decimals}f}]"


def span_text(rate: Rate, decimals: int = 0) -> str:
    """Return the interval in words, in per cent."""
    return f"{100 * rate.low:.{decimals}f} to {100 * rate.high:.{decimals}f}"


def rate_text(rate: Rate | None, decimals: int = 0) -> str:
    """Return a share and its interval; a dash where the rate was not promised, or no item was counted."""
    return NONE if rate is None or rate.items == 0 else f"{percent(rate.value, decimals)} {bracket(rate, decimals)}"


def decimal(value: float) -> str:
    """Return a number with three places and no leading zero; 1.00 from 0.9995 on."""
    return NONE if math.isnan(value) else "1.00" if value >= 0.9995 else f"{value:.3f}".lstrip("0")


def area_text(area: Area) -> str:
    return NONE if math.isnan(area.value) else f"{decimal(area.value)} [{decimal(area.low)}, {decimal(area.high)}]"


def promise_notes(evaluation: Evaluation) -> list[str]:
    """Return a sentence for each rate without numbers that says why it has none."""
    return [f"At {promise_text(p)} nothing is stated: {p.reason}." for p in evaluation.promises if p.reason is not None]


def promise_text(promise: Promise) -> str:
    return f"{100 * promise.rate:g}%"


def part_text(row: AttackRow, part: BudgetPart, grid: int | None) -> str:
    """Return the budgets of a part of an attack's curve: 2 to 3/255."""
    return budgets_text(part.low, part.high, row.norm, grid)


def proof_text(row: AdaptiveRow) -> str:
    """Return what the attack does to detectors known to be broken."""
    return ", ".join(f"{p.detector} {percent(p.success.value)}" for p in row.proof) or "none of them is in the bundle"


def strength_text(row: AdaptiveRow) -> str:
    """Return what stronger attacks get through on some of the row's items; nothing where none was tried."""
    if not row.strength:
        return ""
    parts = (
        f"{one.what} {rate_text(one.stronger)}, of {one.base.items} items, where the row's attack has "
        f"{percent(one.base.value)}"
        for one in row.strength
    )
    return f"{row.label}, stronger at {percent(row.target)}: {'; '.join(parts)}."


def counting_text(e: Evaluation) -> str:
    """Return which adaptive rows count and which are unproven, and whether stronger attacks were tried at all."""
    unproven = [row.label for row in e.adaptive if not row.proven]
    verdict = f"Attack unproven: {', '.join(unproven)}." if unproven else "The attack counts."
    asked = any(row.strength for row in e.adaptive)
    return verdict + ("" if asked else " Whether more steps, restarts or budget get further was not asked.")


def knowledge_text(e: Evaluation) -> str:
    """Return whose attacks stand side by side, and whose is missing."""
    grey = ""
    if any(row.grey for row in e.adaptive):
        grey = (
            " Between them stands one who knows everything but the second network's weights, and attacks the guard "
            "with those of another training in their place."
        )
    elif e.second:
        grey = " One who has second networks of another seed was not measured (--grey-second)."
    return (
        "Side by side on the same items: the attacker who knows everything, and the recipe's attacks within the "
        f"budget, which know nothing of the guard.{grey}"
    )


def gap_text(row: AdaptiveRow) -> str:
    """Return how far what was attacked and what is served differ."""
    parts = [f"attacked side and served verdict differ on {percent(row.disagreement, 1)} of the items"]
    if row.risk_gap:
        parts.append(f"their risks by at most {row.risk_gap:.2g}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def thin_text(families: Iterable[str]) -> str:
    """Return what a star beside a row means."""
    query = Family.QUERY in set(families)
    fewer = f"; {Family.QUERY.min_verified_items} where only answers are asked for" if query else ""
    return f"fewer than {Family.SINGLE_STEP.min_verified_items} items{fewer}: an indication"
