"""The page of an audit log, as HTML that stands by itself and as a PNG beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from guard.audit_log import read_lines
from guard.errors import DataError
from guard.offline.audit.explained import ExplainedInput, explain_riskiest
from guard.offline.audit.figure import png
from guard.offline.audit.summary import UNNAMED, AuditSummary

MAX_TABLE_ROWS = 20
MAX_NAMED_PARTS = 3  # detectors of an input
ATLAS = {
    "AML.T0015": "Evade ML Model",
    "AML.T0043": "Craft Adversarial Data",
    "AML.T0040": "ML Model Inference API Access",
    "AML.T0043.001": "Craft Adversarial Data: Black-Box Optimization",
    "AML.T0029": "Denial of ML Service",
}


def write_page(log: Path, out: Path, bundles: Sequence[Path] = ()) -> AuditSummary:
    """Write the page to `out` and its picture beside it, with the suffix .png; return what they show.

    Of kept inputs that one of `bundles` judged it has saliency maps and further answers.

    Raises:
        DataError: the log is none, or the page cannot be written.
        BundleError: one of the bundles cannot be opened.
    """
    if out.suffix.lower() == ".png":
        raise DataError(f"{out} is where the picture would be; name the page, such as {out.with_suffix('.html')}")
    summary = AuditSummary.of(read_lines(log))
    riskiest = explain_riskiest(summary, bundles)
    picture = png(summary, riskiest)
    try:
        out.write_text(html(summary, picture, str(log), riskiest), encoding="utf-8")
        out.with_suffix(".png").write_bytes(picture)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}") from error
    return summary


def html(summary: AuditSummary, picture: bytes, log: str, riskiest: Sequence[ExplainedInput] = ()) -> str:
    """The text of the page, with its picture inside; every name in it is escaped."""
    environment = Environment(
        loader=PackageLoader("guard.offline.audit"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    tables = {
        "action": summary.actions,
        "model": summary.models,
        "principal": summary.principals,
        "most suspicious detector": summary.detectors,
        "reason": summary.reasons,
    }
    return environment.get_template("audit.html").render(
        log=log,
        facts=facts(summary),
        picture=base64.b64encode(picture).decode(),
        tables={name: (counts.most_common(MAX_TABLE_ROWS), len(counts)) for name, counts in tables.items() if counts},
        inputs=[input_row(one) for one in riskiest],
        atlas=[(name, ATLAS.get(name, ""), count) for name, count in summary.atlas.most_common()],
    )


def input_row(one: ExplainedInput) -> list[str]:
    """The cells of a kept input in the page's table."""
    kept, found = one.kept, one.found
    cells = [
        kept.name or UNNAMED,
        kept.action,
        f"{kept.p_value:.2g}",
        "" if kept.prediction is None else str(kept.prediction),
    ]
    if found is None:
        judged = "" if kept.bundle is None else f" {kept.bundle[:12]}"
        return [*cells, f"not explained: its bundle{judged} was not given (--bundle)", ""]
    others = [f"{each.name}: {each.prediction} ({each.probability:.2f})" for each in found.opinions]
    ranks = zip(found.readings.detector_p[0].tolist(), found.detectors, strict=True)
    worst = [f"{name} {p:.2g}" for p, name in sorted(ranks)[:MAX_NAMED_PARTS]]
    return [*cells, "; ".join(others) or "none asked", ", ".join(worst)]


def facts(summary: AuditSummary) -> list[str]:
    """The facts by which a person tells an attack from noise, one sentence each."""
    found = [f"{summary.events} requests of note."]
    if summary.span is not None and summary.peak is not None:
        first, last = summary.span
        begin, end, most = summary.peak
        dated = summary.events - summary.undated
        found = [f"{summary.events} requests of note, from {moment(first)} to {moment(last)}."]
        found.append(f"The fullest stretch, {moment(begin)} to {moment(end)}, has {most} of {dated}.")
    for counts, words in ((summary.principals, "principal"), (summary.detectors, "most suspicious detector")):
        if counts:
            ((name, count),) = counts.most_common(1)
            share = f"{100 * count / counts.total():.0f} %"
            found.append(f"The most frequent {words} of {len(counts)}: {name}, with {count} ({share}).")
    return found


def moment(seconds: float) -> str:
    """A Unix time as text, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
