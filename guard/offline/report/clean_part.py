"""The page's part on unattacked inputs: false alarms on clean, noisy and shifted items, and by class."""

from __future__ import annotations

import html
from collections.abc import Sequence

from guard.offline.findings.evaluation import ClassRow, CleanRow, Evaluation
from guard.offline.findings.intervals import Promise
from guard.offline.report.markup import folded, heading, heads, named, note, rate, table, td
from guard.offline.report.plots import risk_figure
from guard.offline.report.wording import percent, promise_text

MAX_LISTED_CLASSES = 20  # classes in the table; the JSON file has all


def clean_part(e: Evaluation) -> list[str]:
    own = ("rejected (bundle's own rate)", "flagged or rejected") if has_own_rates(e) else ()
    shifted = [row for row in e.clean if row.accuracy is not None]
    others = [row for row in e.clean if row.accuracy is None and not row.part]
    sizes = [row for row in e.clean if row.part]

    def rows_of(rows: Sequence[CleanRow]) -> str:
        names = ("inputs", "items", *heads(e.stated, "taken for attacked at "), *own)
        return table(names, (clean_cells(row, e.stated, own=bool(own)) for row in rows))

    return [
        heading("Inputs that nobody attacked"),
        note(
            "The promise covers clean items: their number of alarms must lie in the band that the number of "
            "calibration items allows (99.9 %, beta-binomial). Noise has the sizes of the attacks' perturbations and "
            "lies on the data's grid; off-grid clean is half a grid step beside it, where no file can be."
        ),
        rows_of(others),
        *([folded("Noise as large as each attack", rows_of(sizes))] if sizes else []),
        *shift_part(e, shifted),
        *risk_figure(e),
    ]


def shift_part(e: Evaluation, shifted: Sequence[CleanRow]) -> list[str]:
    if not shifted:
        return [note(f"No naturally shifted data: {e.shift_note}.")] if e.shift_note else []
    return [
        "<h3>Naturally shifted inputs</h3>",
        note(
            "What cameras, screens and files do without anybody's intent. Nothing is promised on such data: it is "
            "measured. Beside the alarms, how often the bare model is right on the same pictures: where it is not, an "
            "alarm is no mistake."
        ),
        table(
            ("shift", "items", "bare model right", *heads(e.stated, "taken for attacked at ")),
            (
                (
                    named(row.name),
                    td(str(row.rejected.items)),
                    td(rate(row.accuracy, 1)),
                    *(td(rate(row.alarms.get(p.rate), 1), first=p is e.stated[0]) for p in e.stated),
                )
                for row in shifted
            ),
        ),
    ]


def has_own_rates(e: Evaluation) -> bool:
    """Tell whether the bundle rejects or flags at other rates than those that every report states."""
    return not {e.reject_rate, e.flag_rate} <= {p.rate for p in e.promises}


def clean_cells(row: CleanRow, promises: Sequence[Promise], *, own: bool) -> tuple[str, ...]:
    cells = []
    for promise in promises:
        found, band = row.alarms.get(promise.rate), row.bands.get(promise.rate)
        allowed = f"<small>{found.count}; promised {band[0]} to {band[1]}</small>" if found and band else ""
        cells.append(td(rate(found, 1) + allowed, first=promise is promises[0]))
    at_own = (td(rate(row.rejected, 1), first=True), td(rate(row.flagged, 1))) if own else ()
    return named(row.name), td(str(row.rejected.items)), *cells, *at_own


def class_part(e: Evaluation) -> list[str]:
    """Return the table of false alarms by true class, the classes with the most of them first."""
    if not e.classes:
        return []
    loudest = next(reversed(e.stated), None)

    def alarm(row: ClassRow) -> float:
        found = row.alarms.get(loudest.rate) if loudest else None
        return found.value if found and found.items else -1.0

    classes = sorted(e.by_class, key=lambda row: -alarm(row))
    more = (
        f" The {MAX_LISTED_CLASSES} of {len(classes)} classes that are bothered most."
        if len(classes) > MAX_LISTED_CLASSES
        else ""
    )
    return [
        heading("Whom it bothers"),
        note(
            "Clean test items by true class, and by whether the model has them right. A false alarm that falls on an "
            "item that the model has wrong is one that nobody minds. A class is marked where its interval lies wholly "
            f"above the rate.{more}"
        ),
        table(
            ("clean items", "items", "model right", *heads(e.stated, "taken for attacked at ")),
            (class_cells(row, e.stated) for row in (*e.by_answer, *classes[:MAX_LISTED_CLASSES])),
        ),
    ]


def class_cells(row: ClassRow, promises: Sequence[Promise]) -> Sequence[str]:
    cells = []
    for promise in promises:
        over = f'<small class="bad">above {html.escape(promise_text(promise))}</small>'
        text = rate(row.alarms.get(promise.rate), 1) + (over if row.bothered(promise.rate) else "")
        cells.append(td(text, first=promise is promises[0]))
    return named(row.name), td(str(row.accuracy.items)), td(percent(row.accuracy.value)), *cells
