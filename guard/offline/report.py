"""An evaluation as one JSON file and one plain HTML page.

Rule 1: a report without the adaptive row is no report: it is refused.
Rule 2: the page stands by itself: nothing is loaded from anywhere.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guard.errors import DataError
from guard.offline.findings import (
    FEWEST,
    PROOF_SHARE,
    AdaptiveRow,
    Area,
    AttackRow,
    CleanRow,
    Detection,
    DetectorRow,
    Evaluation,
    Promise,
    Rate,
)
from guard.offline.wording import NONE, decimal, percent, promise_notes, promise_text, proof_text, red_flags

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1.5rem; color: #1b1f24; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem; }
p { max-width: 60rem; } p.lead { font-size: 1.05rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: .6rem; min-width: 40rem; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid #e3e8ed; vertical-align: top; }
th:first-child, td:first-child { text-align: left; min-width: 13rem; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid #8c959f; }
tr.groups th { text-align: center; border-bottom: none; color: #59636e; font-weight: 500; }
td.first, th.first { border-left: 1px solid #c6cdd5; padding-left: 1rem; }
td small { display: block; color: #6b7580; white-space: nowrap; }
td b { font-weight: 600; }
.full { background: #d9efe0; } .most { background: #edf7ef; } .some { background: #fdf4dc; }
.few { background: #fbe3df; }
.bad { color: #b3261e; font-weight: 600; } .note { color: #59636e; }
ul.flags { background: #fdf1ef; border-left: 4px solid #b3261e; padding: .8rem 1rem .8rem 2rem; max-width: 58rem; }
ul.flags li { margin: .2rem 0; }
"""
SHADES = ((0.95, "full"), (0.8, "most"), (0.5, "some"), (0.0, "few"))


def to_json(evaluation: Evaluation) -> str:
    """Raises DataError without the adaptive row."""
    require_adaptive(evaluation)
    content = {**evaluation.to_json(), "against": red_flags(evaluation)}
    return json.dumps(without_nan(content), indent=2, sort_keys=True, allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """The same content with None for what is no number: JSON has no word for it."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_adaptive(evaluation: Evaluation) -> None:
    if not evaluation.adaptive:
        raise DataError(
            "this evaluation has no adaptive row, so it says nothing about an attacker who knows the guard; "
            "no report is written"
        )


def to_html(evaluation: Evaluation) -> str:
    """One self-contained page. Raises DataError without the adaptive row."""
    require_adaptive(evaluation)
    e = evaluation
    parts = [
        f"<h1>What the guard does for {html.escape(e.model)}</h1>",
        f'<p class="lead">Promised: {percent(e.reject_rate, 1)} of clean items rejected, {percent(e.flag_rate, 1)} '
        f"flagged or rejected, calibrated on {e.calibration_items} clean items. Measured on {html.escape(e.data)}; the "
        f"bare model is right on {percent(e.accuracy.value, 1)} of them. Small figures are 95 % intervals.</p>",
        *flag_list(e),
        *(f'<p class="note">{html.escape(note)}</p>' for note in promise_notes(e)),
        *clean_part(e),
        *attack_part(e),
        *adaptive_part(e),
        *detector_part(e),
        f'<p class="note">Bundle {html.escape(e.bundle[:16])}, seed {e.seed}.</p>',
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Guard report: {html.escape(e.model)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def flag_list(e: Evaluation) -> list[str]:
    flags = red_flags(e)
    if not flags:
        return []
    items = "".join(f"<li>{html.escape(flag)}</li>" for flag in flags)
    return [f'<h2>What speaks against these figures</h2><ul class="flags">{items}</ul>']


def clean_part(e: Evaluation) -> list[str]:
    heads = [f"taken for attacked at {promise_text(p)}" for p in e.promises]
    return [
        "<h2>Inputs that nobody attacked</h2>",
        '<p class="note">The promise covers clean items: their number of alarms must lie in the band that the number '
        "of calibration items allows (99.9 %, beta-binomial). Noise has the sizes of the attacks' perturbations and "
        "lies on the data's grid; off-grid clean is half a grid step beside it, where no file can be.</p>",
        table(
            ("inputs", "items", *heads, "rejected (bundle's own rate)", "flagged or rejected"),
            (clean_cells(row, e.promises) for row in e.clean),
        ),
    ]


def clean_cells(row: CleanRow, promises: Sequence[Promise]) -> tuple[str, ...]:
    cells = []
    for promise in promises:
        found, band = row.alarms.get(promise.name), row.bands.get(promise.name)
        allowed = f"<small>{found.count}; promised {band[0]} to {band[1]}</small>" if found and band else ""
        cells.append(td(rate(found, 1) + allowed, first=promise is promises[0]))
    name = html.escape(row.name.strip())
    name = f"<small>{name}</small>" if row.name.startswith(" ") else name
    return (
        td(name),
        td(str(row.rejected.items)),
        *cells,
        td(rate(row.rejected, 1), first=True),
        td(rate(row.flagged, 1)),
    )


def attack_part(e: Evaluation) -> list[str]:
    rates = [f"caught at {promise_text(p)}" for p in e.promises]
    groups = (("", 3), ("guard as served", 1 + len(rates)), ("fitted without its family", 1 + len(rates)))
    found = [
        "<h2>Attacked inputs</h2>",
        '<p class="note">An item counts as attacked only if the model, right before, is wrong after, on the grid of '
        "the data. In the middle, what the served guard makes of attacks of the kind that it learned from. Beside it, "
        "a guard that was fitted, compiled and calibrated in the same way without that family of attacks. On the "
        "right, the share caught of an attacker who knows the guard, at the same budget.</p>",
        table(
            ("attack", "items", "fools the bare model", "AUROC", *rates, "AUROC", *rates, *rates),
            (attack_cells(row, e) for row in e.attacks),
            groups=(*groups, ("knowing attacker", len(rates))),
            firsts=(3, 4 + len(rates), 5 + 2 * len(rates)),
        ),
    ]
    if not e.left_out:
        return [*found, '<p class="note">No family was left out in this run.</p>']
    alarms = (
        f"without <b>{html.escape(row.family)}</b> (fitted on {html.escape(', '.join(row.fitted_on))}): "
        + ", ".join(f"{plain_rate(row.alarms.get(p.name))} at {promise_text(p)}" for p in e.promises)
        for row in e.left_out
    )
    return [*found, f'<p class="note">False alarms of those guards on clean items: {"; ".join(alarms)}.</p>']


def attack_cells(row: AttackRow, e: Evaluation) -> tuple[str, ...]:
    thin = f'<small class="bad">fewer than {FEWEST}</small>' if row.thin else ""
    about = f"{html.escape(row.family)}, {html.escape(row.setting)} in training"
    knowing = next((a for a in e.adaptive if row.norm == "linf" and a.budget == row.budget), None)
    return (
        f'<td title="{html.escape(row.attack)}">{html.escape(row.label)}<small>{about}</small></td>',
        td(f"{row.success.count}{thin}"),
        td(rate(row.success)),
        *detected(row.served, e.promises),
        *detected(row.left_out, e.promises),
        *caught(knowing.detection if knowing else None, e.promises),
    )


def detected(found: Detection | None, promises: Sequence[Promise]) -> tuple[str, ...]:
    return (td(area(found.auroc) if found else NONE, first=True), *caught(found, promises, first=False))


def caught(found: Detection | None, promises: Sequence[Promise], *, first: bool = True) -> tuple[str, ...]:
    cells = []
    for promise in promises:
        share = found.caught.get(promise.name) if found else None
        cells.append(td(rate(share), first=first and promise is promises[0], shade=shade(share)))
    return tuple(cells)


def adaptive_part(e: Evaluation) -> list[str]:
    heads = [f"gets through at {promise_text(p)}" for p in e.promises]
    return [
        "<h2>An attacker who knows the guard</h2>",
        '<p class="note">Knows the model, every detector, the fusion and the threshold, and starts from the static '
        "attack and from random points. It counts only if, at the largest budget, it first defeats detectors known to "
        f"be weak, each alone, on at least {PROOF_SHARE:.0%} of the items. What it attacked is what is served: the "
        "last column is the share of items on which the two differ.</p>",
        table(
            (
                "attack",
                "items, steps",
                "fools the model",
                "AUROC of those",
                *heads,
                "is not rejected (own rate)",
                "is not flagged",
                "proof of strength",
                "counts",
                "attacked and served differ",
            ),
            (adaptive_cells(row, e.promises) for row in e.adaptive),
        ),
    ]


def adaptive_cells(row: AdaptiveRow, promises: Sequence[Promise]) -> tuple[str, ...]:
    counts = "yes" if row.proven else '<span class="bad">attack unproven</span>'
    return (
        td(f"{html.escape(row.label)}<small>aims at the threshold of {percent(row.target)}</small>"),
        td(f"{row.fooled.items}, {row.steps}"),
        td(rate(row.fooled)),
        td(area(row.detection.auroc)),
        *(td(rate(row.passed.get(p.name)), first=p is promises[0]) for p in promises),
        td(rate(row.passed_reject), first=True),
        td(rate(row.passed_flag)),
        td("".join(f"<small>{html.escape(one)}</small>" for one in proof_text(row).split(", ")), first=True),
        td(counts),
        td(percent(row.disagreement, 1)),
    )


def detector_part(e: Evaluation) -> list[str]:
    return [
        "<h2>Each detector alone</h2>",
        '<p class="note">Forwards an item beside the one that the model needs anyway, a backward counting as one; in '
        "brackets those that no other detector of its program pays for too. AUROC in the direction of the paper; below "
        "one half the attack makes an input look calmer than clean. The small figure is the AUROC of the two-sided "
        "p-value: the fusion looks at both tails.</p>",
        table(
            ("detector", "program", "forwards", *(row.label for row in e.attacks)),
            (detector_cells(row, e.attacks) for row in e.detectors),
        ),
    ]


def detector_cells(row: DetectorRow, attacks: Sequence[AttackRow]) -> tuple[str, ...]:
    cells = []
    for attack in attacks:
        one, two = attack.detector_auroc.get(row.name, math.nan), attack.detector_surprise.get(row.name, math.nan)
        cells.append(td(f"{decimal(one)}<small>{decimal(two)}</small>"))
    return td(html.escape(row.name)), td(html.escape(row.program)), td(f"{row.forwards} ({row.own})"), *cells


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    firsts: Sequence[int] = (),
) -> str:
    """`groups` stand over so many columns each; a rule is drawn before the columns `firsts`."""
    over = "".join(f'<th colspan="{width}">{html.escape(name)}</th>' for name, width in groups)
    above = f'<tr class="groups">{over}</tr>\n' if groups else ""
    rule = ' class="first"'
    names = (f"<th{rule if i in firsts else ''}>{html.escape(cell)}</th>" for i, cell in enumerate(head))
    body = "\n".join("<tr>" + "".join(row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n{above}<tr>{"".join(names)}</tr>\n{body}\n</table></div>'


def td(content: str, *, first: bool = False, shade: str = "") -> str:
    names = " ".join(name for name in ("first" if first else "", shade) if name)
    return f'<td class="{names}">{content}</td>' if names else f"<td>{content}</td>"


def shade(found: Rate | None) -> str:
    """A colour by how much is caught."""
    if found is None or found.items == 0:
        return ""
    return next(name for least, name in SHADES if found.value >= least)


def rate(value: Rate | None, decimals: int = 0) -> str:
    if value is None or value.items == 0:
        return NONE
    low, high = 100 * value.low, 100 * value.high
    return f"{percent(value.value, decimals)}<small>{low:.{decimals}f} to {high:.{decimals}f}</small>"


def plain_rate(value: Rate | None) -> str:
    return NONE if value is None else percent(value.value, 1)


def area(value: Area) -> str:
    if math.isnan(value.value):
        return NONE
    return f"{decimal(value.value)}<small>{decimal(value.low)} to {decimal(value.high)}</small>"
