"""The page's part on the whole system under attack: the figures that operators care about."""

from __future__ import annotations

from collections.abc import Sequence

from guard.offline.findings.evaluation import AdaptiveRow, AttackRow, Detection, Evaluation
from guard.offline.findings.intervals import Area, Promise, Rate
from guard.offline.report.markup import heading, heads, named, note, rate, rates, shade, table, td
from guard.offline.report.wording import percent

NOTHING = Area(float("nan"), 0.0, 1.0)


def system_part(e: Evaluation) -> list[str]:
    """Return robust accuracy with rejection, beside the bare model's, and the accuracy of what still passes."""
    promises, left = e.stated, bool(e.left_out)
    width, names = len(promises), heads(promises)
    rows: list[Sequence[str]] = [attack_cells(row, promises, left=left) for row in e.every_attack]
    rows += [adaptive_cells(row, promises, left=left) for row in e.adaptive]
    if e.worst is not None:
        rows.append(
            (
                named("the worst of the recipe's", "each item meets the attack that is worst for it"),
                td(str(e.worst.bare.items)),
                td(rate(e.worst.bare), shade=shade(e.worst.bare)),
                *both(Detection(NOTHING, {}, e.worst.handled), None, promises, left=left),
            )
        )
    groups = ["handled by the guard at", "right, of what passes at"]
    if left:
        groups = [groups[0], "handled, family left out", groups[1], "the same, family left out"]
    return [
        heading("The whole system under attack"),
        note(
            "Of the items that the model has right, each attacked: an item counts as handled when it is rejected or "
            "still classified right. Beside it the model alone, under the same attack. Of what still passes the guard, "
            "the share that is classified right: what a consumer of the answers sees. Where an attack fails, the clean "
            "item stands. “Left out”: a guard that was fitted without attacks of that family."
        ),
        table(
            ("attack", "items tried", "bare model right", *names * len(groups)),
            rows,
            groups=(("", 3), *((group, width) for group in groups)),
            firsts=tuple(3 + width * number for number in range(len(groups))),
        ),
        *worst_note(e),
    ]


def attack_cells(row: AttackRow, promises: Sequence[Promise], *, left: bool) -> Sequence[str]:
    about = f"{row.family}, {row.setting} in training"
    return (
        named(row.label, about, row.attack),
        td(str(row.tried)),
        td(rate(row.bare), shade=shade(row.bare)),
        *both(row.served, row.left_out, promises, left=left),
    )


def adaptive_cells(row: AdaptiveRow, promises: Sequence[Promise], *, left: bool) -> Sequence[str]:
    bare = row.fooled.complement()
    return (
        named(row.label, "knows the guard"),
        td(str(row.fooled.items)),
        td(rate(bare), shade=shade(bare)),
        *both(row.detection, None, promises, left=left),
    )


def both(served: Detection, left_out: Detection | None, promises: Sequence[Promise], *, left: bool) -> list[str]:
    """Return the cells of one row; `left` adds columns for a guard that was fitted without the family."""
    return [
        *rates(served.handled, promises),
        *(rates(left_out.handled if left_out else None, promises) if left else ()),
        *rates(served.passing, promises),
        *(rates(left_out.passing if left_out else None, promises) if left else ()),
    ]


def worst_note(e: Evaluation) -> list[str]:
    """Name the single attack that is worst for the guard, at its own reject rate, adaptive ones included."""
    found: list[tuple[str, Rate, Rate]] = [(row.label, row.robust_accuracy, row.bare) for row in e.every_attack]
    found += [(row.label, row.passed_reject.complement(), row.fooled.complement()) for row in e.adaptive]
    found = [one for one in found if one[1].items]
    if not found:
        return []
    label, guarded, bare = min(found, key=lambda one: one[1].value)
    return [
        note(
            f"The worst single attack at the bundle's own reject rate of {percent(e.reject_rate, 1)}: {label}, under "
            f"which {percent(guarded.value)} of {guarded.items} items are handled; the bare model has "
            f"{percent(bare.value)} right."
        )
    ]
