"""An evaluation as one JSON file and one plain HTML page.

Rule 1: a report without the adaptive row is no report: it is refused.
Rule 2: the page stands by itself: nothing is loaded from anywhere.
Rule 3: the same evaluation is the same page, byte for byte.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from typing import Any

from guard.errors import DataError
from guard.offline.findings.evaluation import Evaluation
from guard.offline.report.adaptive_part import adaptive_part
from guard.offline.report.attack_part import attack_part, suite_part
from guard.offline.report.clean_part import class_part, clean_part
from guard.offline.report.detector_part import detector_part
from guard.offline.report.pictures import picture_part
from guard.offline.report.red_flags import red_flags
from guard.offline.report.style import STYLE
from guard.offline.report.summary import summary
from guard.offline.report.system_part import system_part
from guard.offline.report.wording import percent, promise_notes


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
    parts = [
        f"<h1>What the guard does for {html.escape(e.model)}</h1>",
        f'<p class="lead">Promised: {percent(e.reject_rate, 1)} of clean items rejected, {percent(e.flag_rate, 1)} '
        f"flagged or rejected, calibrated on {e.calibration_items} clean items. Measured on {html.escape(e.data)}; the "
        f"bare model is right on {percent(e.accuracy.value, 1)} of them. Small figures are 95 % intervals.</p>",
        *summary(e),
        *flag_list(e),
        *(f'<p class="note">{html.escape(note)}</p>' for note in promise_notes(e)),
        *system_part(e),
        *attack_part(e),
        *suite_part(e),
        *adaptive_part(e),
        *detector_part(e),
        *clean_part(e),
        *class_part(e),
        *picture_part(e),
        f'<p class="note">Guard {html.escape(e.guard[:16])}, seed {e.seed}.</p>',
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
