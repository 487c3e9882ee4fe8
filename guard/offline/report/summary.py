"""The page's first lines: the few figures that a decision rests on, none without its opposite."""

from __future__ import annotations

import html
from collections.abc import Sequence

from guard.offline.findings import AttackRow, Caught, Detection, Evaluation, Promise, Rate
from guard.offline.wording import NONE, percent, promise_text


def summary(e: Evaluation) -> list[str]:
    """Tiles, at the bundle's own reject rate where it is stated, and else at the smallest that is."""
    promise = own_promise(e)
    if promise is None:
        return []
    at = promise_text(promise)
    clean = e.clean[0].alarms.get(promise.name) if e.clean else None
    return [
        '<div class="tiles">',
        tile(percent_of(clean), f"of clean items taken for attacked, where {at} was promised"),
        tile(span([row.served for row in verified(e)], promise), f"of each attack caught at {at}, all kinds known"),
        tile(span([row.left_out for row in verified(e)], promise), "caught by a guard that never saw such attacks"),
        *(
            tile(percent_of(row.passed.get(promise.name)), f"got through by one who knows the guard, {size(row.label)}")
            for row in e.adaptive
        ),
        *whole(e, promise),
        "</div>",
    ]


def own_promise(e: Evaluation) -> Promise | None:
    made = [promise for promise in e.promises if promise.reason is None]
    return next((p for p in made if p.rate == e.reject_rate), next(iter(made), None))


def verified(e: Evaluation) -> list[AttackRow]:
    return [row for row in e.attacks if row.success.count]


def whole(e: Evaluation, promise: Promise) -> list[str]:
    if e.worst is None:
        return []
    handled = e.worst.handled.get(promise.name)
    text = "right or rejected under the worst attack of the recipe; the bare model: "
    return [tile(percent_of(handled), text + percent_of(e.worst.bare))]


def size(label: str) -> str:
    return label.removeprefix("adaptive ")


def tile(figure: str, text: str) -> str:
    return f'<div class="tile"><b>{html.escape(figure)}</b><small>{html.escape(text)}</small></div>'


def percent_of(rate: Rate | None) -> str:
    if rate is None or rate.items == 0:
        return NONE
    return percent(rate.value, 1 if rate.value < 0.1 else 0)


def span(found: Sequence[Detection | None], promise: Promise) -> str:
    """From the least to the most."""
    caught: list[Caught] = [one.caught for one in found if one is not None]
    shares = [rate.value for one in caught if (rate := one.get(promise.name)) is not None and rate.items]
    if not shares:
        return NONE
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"
