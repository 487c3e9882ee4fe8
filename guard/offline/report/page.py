"""An evaluation as one JSON file and one plain HTML page.

Rule 1: a report without the adaptive row is no report: it is refused.
Rule 2: the page stands by itself: nothing is loaded from anywhere.
Rule 3: the same evaluation is the same page, byte for byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from guard.errors import DataError
from guard.offline.findings.evaluation import Evaluation
from guard.offline.report.claims import claims
from guard.offline.report.pictures import picture_plot
from guard.offline.report.plots import budget_plot, cost_plot, curve_plot, risk_plot, roc_plot
from guard.offline.report.published import data_like
from guard.offline.report.red_flags import red_flags
from guard.offline.report.rows import classes_by_alarms, has_own_rates, stand_ins, system_rows, worst_single
from guard.offline.report.summary import tiles
from guard.offline.report.template import environment
from guard.offline.report.wording import promise_notes


def to_json(evaluation: Evaluation) -> str:
    """Return the evaluation as JSON. Raises DataError without the adaptive row."""
    require_adaptive(evaluation)
    content = {**evaluation.to_json(), "against": red_flags(evaluation)}
    return json.dumps(without_nan(content), indent=2, sort_keys=True, allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """Return the same content as JSON can hold it: rate keys as text, None for what is no number."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else f"{key:g}": without_nan(inner) for key, inner in value.items()}
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
    """Return the evaluation as one self-contained page. Raises DataError without the adaptive row."""
    require_adaptive(evaluation)
    e = evaluation
    return (
        environment()
        .get_template("page.html")
        .render(
            e=e,
            tiles=tiles(e),
            flags=red_flags(e),
            promise_notes=promise_notes(e),
            system=system_rows(e),
            worst=worst_single(e),
            stand_ins=stand_ins(e),
            claims=claims(e),
            known_data=data_like(e.item_shape, e.class_count),
            own_rates=has_own_rates(e),
            classes=classes_by_alarms(e),
            plots={
                "roc": roc_plot(e),
                "budgets": budget_plot(e),
                "curves": curve_plot(e),
                "costs": cost_plot(e),
                "risks": risk_plot(e),
                "pictures": picture_plot(e),
            },
        )
    )
