"""Claims of a report beside what is known to be possible, where the model looks like one that figures exist for."""

from __future__ import annotations

from guard.offline.findings.attack_names import spoken_budget
from guard.offline.findings.evaluation import AdaptiveRow, Evaluation
from guard.offline.report.published import best_within, data_like
from guard.offline.report.wording import percent


def claims(e: Evaluation) -> list[str]:
    """Return a clause for each adaptive row: what is handled, and what the best published classifier has."""
    return [
        f"of all items, {percent(e.accuracy.value * row.passed_reject.complement().value, 1)} are handled at "
        f"{spoken_budget(row.budget, e.grid)}; {known} (RobustBench)"
        for row in e.adaptive
        if (known := known_about(row, e)) is not None
    ]


def known_about(row: AdaptiveRow, e: Evaluation) -> str | None:
    data = data_like(e.item_shape, e.class_count)
    half, same = best_within(data, "linf", row.budget / 2), best_within(data, "linf", row.budget)
    if half is not None:
        return (
            f"the best classifier on {half.data} has {percent(half.accuracy, 1)} at {half.spoken}, which is within "
            "half the budget"
        )
    if same is not None:
        return (
            f"no figure is at hand for half the budget; the best classifier on {same.data} has "
            f"{percent(same.accuracy, 1)} at {same.spoken}"
        )
    return None
