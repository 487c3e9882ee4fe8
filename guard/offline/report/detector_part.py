"""The page's part on single detectors: what each costs and catches alone, beside all of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from guard.offline.findings.evaluation import AttackRow, Detection, Evaluation
from guard.offline.findings.intervals import Promise, Rate
from guard.offline.report.markup import folded, heading, named, note, shade, table, td
from guard.offline.report.plots import cost_figure
from guard.offline.report.wording import NONE, decimal, percent, promise_text

ALL = "all together"
MIN_SHADED_SHARE = 0.5  # a share below it needs no colour: most detectors alone catch little


def detector_part(e: Evaluation) -> list[str]:
    tables = [(f"Caught by each detector alone at {promise_text(p)}", alone_table(e, p)) for p in e.stated]
    last = [f"<h3>{tables[-1][0]}</h3>", tables[-1][1]] if tables else []
    return [
        heading("Each detector alone"),
        note(
            "Forwards an item beside the one that the model needs anyway, a backward counting as one; in brackets "
            "those that no other detector of its program pays for too. A detector alone is counted by its two-sided "
            "p-value, since both tails of every score are suspicious to the fusion. Small: by the same detector, "
            "fitted without the attack's family."
        ),
        *last,
        *(folded(title, content) for title, content in tables[:-1]),
        folded("AUROC of each detector", area_table(e)),
        *cost_figure(e),
    ]


def head_of(e: Evaluation) -> tuple[str, ...]:
    return ("attack", *(row.name.replace("_", " ") for row in e.detectors))


def cost_cells(e: Evaluation, *last: str) -> Sequence[str]:
    """Return the first row under the names, which says what each detector costs."""
    return named("forwards (own)"), *(td(f"{row.forwards} ({row.own})") for row in e.detectors), *last


def alone_table(e: Evaluation, promise: Promise) -> str:
    rows: list[Sequence[str]] = [cost_cells(e, td(str(e.forwards), first=True))]
    rows += [alone_cells(row, e, promise) for row in e.every_attack]
    rows += [(named(row.label, "knows the guard"), *cells(row.detection, None, e, promise)) for row in e.adaptive]
    return table((*head_of(e), ALL), rows, firsts=(1, 1 + len(e.detectors)))


def alone_cells(row: AttackRow, e: Evaluation, promise: Promise) -> Sequence[str]:
    return named(row.label, f"{row.family}, {row.setting}"), *cells(row.served, row.left_out, e, promise)


def cells(served: Detection, left_out: Detection | None, e: Evaluation, promise: Promise) -> list[str]:
    found = []
    for detector in e.detectors:
        without = left_out.alone.get(detector.name, {}).get(promise.rate) if left_out else None
        found.append(cell(served.alone.get(detector.name, {}).get(promise.rate), without))
    together = left_out.caught.get(promise.rate) if left_out else None
    return [*found, cell(served.caught.get(promise.rate), together, first=True)]


def cell(share: Rate | None, without: Rate | None, *, first: bool = False) -> str:
    if share is None or share.items == 0:
        return td(NONE, first=first)
    left = f"<small>left out {percent(without.value)}</small>" if without is not None and without.items else ""
    interval = f"<small>{100 * share.low:.0f} to {100 * share.high:.0f}</small>"
    return td(
        percent(share.value) + interval + left,
        first=first,
        shade=shade(share) if share.value >= MIN_SHADED_SHARE else "",
    )


def area_table(e: Evaluation) -> str:
    explained = note(
        "In the direction of the paper; below one half the attack makes an input look calmer than clean. The small "
        "figure is the AUROC of the two-sided p-value."
    )
    rows: list[Sequence[str]] = [cost_cells(e)]
    for attack in e.every_attack:
        found = []
        for detector in e.detectors:
            one = attack.detector_auroc.get(detector.name, math.nan)
            two = attack.detector_surprise.get(detector.name, math.nan)
            found.append(td(f"{decimal(one)}<small>{decimal(two)}</small>"))
        rows.append((named(attack.label), *found))
    return explained + table(head_of(e), rows)
