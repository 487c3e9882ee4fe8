"""The page's part on the adaptive attacker, who knows the guard, and on the proof of the attack's strength."""

from __future__ import annotations

import html
from collections.abc import Sequence

from guard.offline.findings.attack_names import spoken_budget
from guard.offline.findings.evaluation import PROOF_SHARE, AdaptiveRow, Evaluation
from guard.offline.report.clean_part import has_own_rates
from guard.offline.report.markup import area, folded, heading, heads, named, note, rate, rates, table, td
from guard.offline.report.published import best_within, data_like
from guard.offline.report.wording import gap_text, percent, proof_text


def adaptive_part(e: Evaluation) -> list[str]:
    own = ("is not rejected (bundle's own rate)", "is not flagged") if has_own_rates(e) else ()
    half = ("50%",) if any(row.sr50 for row in e.adaptive) else ()
    methods = ("each method alone",) if any(row.by_method for row in e.adaptive) else ()
    through = (*heads(e.promises), *half, *methods)
    return [
        heading("An attacker who knows the guard"),
        note(
            "Knows the model, every detector, the fusion and the threshold, and starts from the static attack and from "
            "random points. It counts only if, at the largest budget, it first defeats detectors known to be weak, "
            f"each alone, on at least {PROOF_SHARE:.0%} of the items. What gets through fools the model and is not "
            "caught, as a share of all items attacked; at 50%, where half of the clean items are given up."
        ),
        table(
            (
                "attack",
                "items, steps",
                "fools the model",
                "AUROC of those",
                *through,
                *own,
                "proof of strength",
                "counts",
            ),
            (adaptive_cells(row, e, half=bool(half), methods=bool(methods), own=bool(own)) for row in e.adaptive),
            groups=(("", 4), ("gets through at", len(through)), ("", 2 + len(own))),
            firsts=(4, 4 + len(through)),
        ),
        note(" ".join(f"{row.label}: {lowered(gap_text(row))}" for row in e.adaptive)),
        *stand_ins(e),
        *limits(e),
    ]


def adaptive_cells(row: AdaptiveRow, e: Evaluation, *, half: bool, methods: bool, own: bool) -> Sequence[str]:
    wrong = "attack unproven" if not row.proven else "not what is served"
    counts = "yes" if row.proven and row.agrees else f'<span class="bad">{wrong}</span>'
    alone = [f"{name} {percent(one.value)}" for name, one in row.by_method.items()]
    return (
        named(row.label, f"aims at the threshold of {percent(row.target)}"),
        td(f"{row.fooled.items}, {row.steps}"),
        td(rate(row.fooled)),
        td(area(row.detection.auroc)),
        *rates(row.passed, e.promises, shaded=False),
        *((td(rate(row.sr50)),) if half else ()),
        *((td(small_lines(alone)),) if methods else ()),
        *((td(rate(row.passed_reject), first=True), td(rate(row.passed_flag))) if own else ()),
        td(small_lines(proof_text(row).split(", ")), first=True),
        td(counts),
    )


def small_lines(lines: Sequence[str]) -> str:
    return "".join(f"<small>{html.escape(one)}</small>" for one in lines)


def stand_ins(e: Evaluation) -> list[str]:
    """List what stands in for what has no gradient, once, though every row has the list."""
    named = dict.fromkeys(name for row in e.adaptive for name in row.surrogates)
    if not named:
        return []
    items = "".join(f"<li>{html.escape(name)}</li>" for name in named)
    return [folded(f"What stands in for what has no gradient ({len(named)})", f"<ul>{items}</ul>")]


def lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def limits(e: Evaluation) -> list[str]:
    """Compare with what is known to be possible, where the model looks like one that figures were published for."""
    data = data_like(e.item_shape, e.class_count)
    lines = []
    for row in e.adaptive:
        claim = percent(e.accuracy.value * row.passed_reject.complement().value, 1)
        size, half = spoken_budget(row.budget, e.grid), best_within(data, "linf", row.budget / 2)
        same = best_within(data, "linf", row.budget)
        if half is not None:
            known = (
                f"the best classifier on {half.data} has {percent(half.accuracy, 1)} at {half.spoken}, which is within "
                "half the budget"
            )
        elif same is not None:
            known = (
                f"no figure is at hand for half the budget; the best classifier on {same.data} has "
                f"{percent(same.accuracy, 1)} at {same.spoken}"
            )
        else:
            continue
        lines.append(f"of all items, {claim} are handled at {size}; {known} (RobustBench)")
    if not lines:
        return []
    return [
        note(
            "Is this more than is known to be possible? A detector that is robust within some distance would make a "
            "classifier that is robust within half of it (Tramer 2022). If this is "
            f"{data}: {'; '.join(lines)}."
        )
    ]
