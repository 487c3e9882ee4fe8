"""The page's summary: the few figures that a decision rests on, none without its opposite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guard.offline.findings.evaluation import AttackRow, Detection, Evaluation
from guard.offline.findings.intervals import Caught, Promise, Rate
from guard.offline.report.wording import NONE, percent, promise_text


@dataclass(frozen=True)
class Tile:
    """A figure of the summary, with the words that say what was counted."""

    figure: str
    text: str


def tiles(e: Evaluation) -> list[Tile]:
    """Return tiles at the bundle's own reject rate where it is stated, and else at the smallest that is."""
    promise = own_promise(e)
    if promise is None:
        return []
    at = promise_text(promise)
    clean = e.clean[0].alarms.get(promise.rate) if e.clean else None
    return [
        Tile(percent_of(clean), f"of clean items taken for attacked, where {at} was promised"),
        Tile(span([row.served for row in verified(e)], promise), f"caught at {at}, from the least attack to the most"),
        *left_out(e, promise),
        *(Tile(percent_of(row.passed.get(promise.rate)), knowing(row.label)) for row in e.adaptive),
        *worst(e, promise),
    ]


def own_promise(e: Evaluation) -> Promise | None:
    return next((p for p in e.stated if p.rate == e.reject_rate), next(iter(e.stated), None))


def verified(e: Evaluation) -> list[AttackRow]:
    return [row for row in e.attacks if row.success.count]


def left_out(e: Evaluation, promise: Promise) -> list[Tile]:
    if not e.left_out:
        return []
    found = [row.left_out for row in verified(e)]
    return [Tile(span(found, promise), "caught by a guard that was fitted without attacks of that family")]


def worst(e: Evaluation, promise: Promise) -> list[Tile]:
    if e.worst is None:
        return []
    handled = e.worst.handled.get(promise.rate)
    text = "right or rejected where each item meets the worst attack of the recipe; the bare model: "
    return [Tile(percent_of(handled), text + percent_of(e.worst.bare))]


def knowing(label: str) -> str:
    return f"gets through if the attacker knows the guard, {label.removeprefix('adaptive ')}"


def percent_of(rate: Rate | None) -> str:
    if rate is None or rate.items == 0:
        return NONE
    return percent(rate.value, 1 if 0 < rate.value < 0.1 else 0)


def span(found: Sequence[Detection | None], promise: Promise) -> str:
    """Return the range of what is caught, from the least to the most."""
    caught: list[Caught] = [one.caught for one in found if one is not None]
    shares = [rate.value for one in caught if (rate := one.get(promise.rate)) is not None and rate.items]
    if not shares:
        return NONE
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"
