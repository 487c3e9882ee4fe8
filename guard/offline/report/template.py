"""The environment that renders the page's templates.

Rule 1: every text is escaped, and a name that a template misspells is an error, not a gap on the page.
"""

from __future__ import annotations

import math
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from guard.offline.findings.evaluation import PROOF_SHARE, UnrunRow, fewest
from guard.offline.findings.intervals import Rate
from guard.offline.report.rows import knowing
from guard.offline.report.wording import (
    NONE,
    counting_text,
    decimal,
    gap_text,
    knowledge_text,
    part_text,
    percent,
    promise_text,
    proof_text,
    span_text,
    strength_text,
)

MIN_DENSE_COLUMNS = 12  # columns that are drawn closer together
MIN_SHADED_SHARE = 0.5  # caught by a detector alone; below it no colour: most detectors alone catch little
MAX_LISTED_CLASSES = 20  # classes in the table; the JSON file has all
SHADE_SHARES = ((0.95, "full"), (0.8, "most"), (0.5, "some"), (0.0, "few"))


@cache
def environment() -> Environment:
    """Return the templates of this package, with the report's wording as filters."""
    made = Environment(
        loader=PackageLoader("guard.offline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "decimal": decimal,
        "fewest": fewest,
        "gap": gap_text,
        "lowered": lowered,
        "percent": percent,
        "prefixed": prefixed,
        "promise": promise_text,
        "proof": proof_text,
        "shade": shade,
        "span": span_text,
        "strength": strength_text,
    }
    made.tests |= {"nan": math.isnan, "unrun": is_unrun}
    made.globals |= {
        "counting_text": counting_text,
        "knowing": knowing,
        "knowledge_text": knowledge_text,
        "part_text": part_text,
        "MAX_LISTED_CLASSES": MAX_LISTED_CLASSES,
        "MIN_DENSE_COLUMNS": MIN_DENSE_COLUMNS,
        "MIN_SHADED_SHARE": MIN_SHADED_SHARE,
        "NAN": math.nan,
        "NONE": NONE,
        "PROOF_SHARE": PROOF_SHARE,
    }
    return made


def shade(found: Rate | None) -> str:
    """Return the CSS class of a colour by how much is caught, or handled."""
    if found is None or found.items == 0:
        return ""
    return next(name for least, name in SHADE_SHARES if found.value >= least)


def lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def prefixed(text: str, before: str) -> str:
    return before + text


def is_unrun(row: object) -> bool:
    return isinstance(row, UnrunRow)
