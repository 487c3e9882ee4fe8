"""An evaluation as one JSON file and one plain HTML page.

Rule 1: a report without the adaptive row is no report: it is refused.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guard.errors import DataError
from guard.offline.evaluate import PROOF_SHARE, AdaptiveRow, AttackRow, CleanRow, Evaluation, Rate

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 82rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #d8dee4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
th { font-weight: 600; border-bottom: 2px solid #8c959f; vertical-align: bottom; }
small { color: #59636e; } .bad { color: #b3261e; font-weight: 600; } .note { color: #59636e; }
"""


def to_json(evaluation: Evaluation) -> str:
    """Raises DataError without the adaptive row."""
    require_adaptive(evaluation)
    return json.dumps(without_nan(evaluation.to_json()), indent=2, sort_keys=True, allow_nan=False) + "\n"


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
        f"<p>Promised: {e.reject_rate:.3g} of clean items rejected, {e.flag_rate:.3g} flagged or rejected, calibrated "
        f"on {e.calibration_items} clean items. Measured on {html.escape(e.data)}; the bare model is right on "
        f"{rate(e.accuracy)} of them. Brackets are 95 % intervals.</p>",
        *(f'<p class="bad">{html.escape(flag)}</p>' for flag in red_flags(e)),
        "<h2>Inputs that nobody attacked</h2>",
        table(
            ("inputs", "items", "rejected", "flagged or rejected", "promised band of rejections"),
            map(clean_cells, e.clean),
        ),
        "<h2>Attacked inputs</h2>",
        '<p class="note">An item counts as attacked only if the model, right before, is wrong after, '
        "on the data's own grid.</p>",
        table(
            (
                "attack",
                "in training",
                "fools the bare model",
                "AUROC",
                "rejected",
                "flagged or rejected",
                "accuracy with guard",
            ),
            map(attack_cells, e.attacks),
        ),
        "<h2>An attacker who knows the guard</h2>",
        '<p class="note">Knows the model, every detector, the fusion and the threshold, and starts from the static '
        "attack. It counts only if, at the largest budget, it first defeats detectors known to be weak, each alone, on "
        f"at least {PROOF_SHARE:.0%} of the items. What it attacked is what is served: the last column is the share of "
        "items on which the two differ.</p>",
        table(
            (
                "budget, steps",
                "fools the model",
                "and is not rejected",
                "and is not flagged",
                "proof of strength",
                "counts",
                "attacked and served differ",
            ),
            map(adaptive_cells, e.adaptive),
        ),
        "<h2>Each detector alone</h2>",
        '<p class="note">AUROC in the direction of its paper; below one half the attack makes an input look calmer '
        "than clean, which the fusion, looking at both tails, still sees.</p>",
        table(("attack", *e.detectors), (detector_cells(row, e.detectors) for row in e.attacks)),
        f'<p class="note">Bundle {html.escape(e.bundle[:16])}, seed {e.seed}.</p>',
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Guard report: {html.escape(e.model)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def red_flags(e: Evaluation) -> list[str]:
    """What the report says against itself."""
    flags = []
    static = {row.attack: row.rejected.value for row in e.attacks if row.success.count}
    for row in e.adaptive:
        if not row.proven:
            flags.append(f"Adaptive attack at {row.budget:g}: attack unproven; its row says nothing about the guard.")
        fooled = row.fooled.count
        caught = 1 - row.passed_reject.count / fooled if fooled else 0.0
        if fooled and static and caught > max(static.values()) + 0.05:
            flags.append(
                f"Adaptive attack at {row.budget:g}: caught more often than any static attack; "
                "it is too weak to be believed."
            )
    flags += [
        f"{row.name}: {row.rejected.count} rejections lie outside the promised band {row.reject_band}."
        for row in e.clean
        if row.reject_band and not row.reject_band[0] <= row.rejected.count <= row.reject_band[1]
    ]
    flags += [
        f"{row.attack}: it does not fool the bare model; its row says nothing."
        for row in e.attacks
        if row.success.count == 0
    ]
    return flags


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{header}</tr>\n{body}\n</table>"


def rate(value: Rate) -> str:
    if value.items == 0:
        return "–"
    return f"{value.value:.1%} <small>[{value.low:.1%}, {value.high:.1%}]</small>"


def clean_cells(row: CleanRow) -> tuple[str, ...]:
    band = f"{row.reject_band[0]} to {row.reject_band[1]}, found {row.rejected.count}" if row.reject_band else "–"
    return html.escape(row.name), str(row.rejected.items), rate(row.rejected), rate(row.flagged), band


def attack_cells(row: AttackRow) -> tuple[str, ...]:
    few = (
        f" <small>only {row.success.count} items</small>" if row.thin else f" <small>{row.success.count} items</small>"
    )
    score = f"{row.auroc:.3f}" if row.success.count else "–"
    return (
        html.escape(row.attack) + few,
        html.escape(row.setting),
        f"{row.success.value:.1%}",
        score,
        rate(row.rejected),
        rate(row.flagged),
        rate(row.robust_accuracy),
    )


def adaptive_cells(row: AdaptiveRow) -> tuple[str, ...]:
    proof = ", ".join(f"{html.escape(p.detector)} {p.success.value:.0%}" for p in row.proof) or "none"
    counts = "yes" if row.proven else '<span class="bad">attack unproven</span>'
    return (
        f"{row.budget:g}, {row.steps} steps",
        rate(row.fooled),
        rate(row.passed_reject),
        rate(row.passed_flag),
        proof,
        counts,
        f"{row.disagreement:.1%}",
    )


def detector_cells(row: AttackRow, detectors: Sequence[str]) -> tuple[str, ...]:
    return (
        html.escape(row.attack),
        *(f"{row.detector_auroc[name]:.3f}" if name in row.detector_auroc else "–" for name in detectors),
    )
