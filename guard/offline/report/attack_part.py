"""The page's part on attacked inputs: what is caught of attacks seen, left out, and adapted to the guard."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from guard.offline.findings.evaluation import AttackRow, Detection, Evaluation, UnrunRow, fewest
from guard.offline.findings.intervals import Promise
from guard.offline.report.markup import area, heading, heads, named, note, plain_rate, rate, rates, table, td
from guard.offline.report.plots import budget_figure, roc_figure
from guard.offline.report.wording import NONE, promise_text

KEY = (
    '<p class="note key">Caught: <span class="full">95 % and more</span><span class="most">80 % and more</span>'
    '<span class="some">half and more</span><span class="few">less than half</span></p>'
)


def attack_part(e: Evaluation) -> list[str]:
    return [
        heading("Attacked inputs"),
        note(
            "An item counts as attacked only if the model, right before, is wrong after, on the grid of the data. In "
            "the middle, what the served guard makes of attacks of the kind that it learned from. Beside it, a guard "
            "that was fitted, compiled and calibrated in the same way without that family of attacks. On the right, "
            "the share caught of an attacker who knows the guard, at the same budget."
        ),
        KEY,
        attack_table(e, e.attacks),
        left_out_note(e),
        *roc_figure(e),
        *budget_figure(e),
    ]


def attack_table(e: Evaluation, rows: Iterable[AttackRow | UnrunRow]) -> str:
    """Return the table of attacks, its middle part only where a family was left out."""
    names, width = heads(e.promises), len(e.promises)
    left = ("AUROC", *names) if e.left_out else ()
    return table(
        ("attack", "items", "fools the bare model", "AUROC", *names, *left, *names),
        (attack_cells(row, e) if isinstance(row, AttackRow) else unrun_cells(row, e) for row in rows),
        groups=(
            ("", 3),
            ("caught by the guard as served, at", 1 + width),
            *((("caught, fitted without its family, at", 1 + width),) if left else ()),
            ("a knowing attacker caught at", width),
        ),
        firsts=(3, 4 + width, *((5 + 2 * width,) if left else ())),
    )


def left_out_note(e: Evaluation) -> str:
    if not e.left_out:
        return note("No family was left out in this run.")
    alarms = (
        f"without <b>{html.escape(row.family)}</b> (fitted on {html.escape(', '.join(row.fitted_on))}): "
        + ", ".join(f"{plain_rate(row.alarms.get(p.rate))} at {promise_text(p)}" for p in e.promises)
        for row in e.left_out
    )
    return f'<p class="note">False alarms of those guards on clean items: {"; ".join(alarms)}.</p>'


def attack_cells(row: AttackRow, e: Evaluation) -> Sequence[str]:
    thin = f'<small class="bad">fewer than {fewest(row.family)}</small>' if row.thin else ""
    knowing = next((a for a in e.adaptive if row.norm == "linf" and a.budget == row.budget), None)
    return (
        named(row.label, f"{row.family}, {row.setting} in training", row.attack),
        td(f"{row.success.count}{thin}"),
        td(rate(row.success)),
        *detected(row.served, e.promises),
        *(detected(row.left_out, e.promises) if e.left_out else ()),
        *rates(knowing.detection.caught if knowing else None, e.promises),
    )


def unrun_cells(row: UnrunRow, e: Evaluation) -> Sequence[str]:
    """Return the cells of an attack that could not be run: it counts as failed, nothing of it is caught."""
    groups = 3 if e.left_out else 2
    width = groups * (1 + len(e.promises))  # all cells but the name's and the items', less the AUROC that one lacks
    reason = f'<span class="bad">failed</span> <small class="inline">{html.escape(row.reason)}</small>'
    return (
        named(row.label, f"{row.family}, could not be run", row.attack),
        td(NONE),
        f'<td colspan="{width}" style="text-align:left">{reason}</td>',
    )


def detected(found: Detection | None, promises: Sequence[Promise]) -> list[str]:
    return [
        td(area(found.auroc) if found else NONE, first=True),
        *rates(found.caught if found else None, promises, first=False),
    ]


def suite_part(e: Evaluation) -> list[str]:
    if e.suite is None:
        return []
    done = len(e.suite.run)
    about = e.suite.description.rstrip(".") + ". " if e.suite.description else ""
    return [
        heading(f"The suite {e.suite.name}"),
        note(
            f"{about}{done} of {len(e.suite.rows)} attacks were run, in {e.suite.minutes:g} minutes of their own; one "
            "that cannot be run counts as failed. Attacks that the bundle learned from say so."
            + (" Where no family could be left out, the bundle never saw one of it." if e.left_out else "")
        ),
        attack_table(e, e.suite.rows),
    ]
