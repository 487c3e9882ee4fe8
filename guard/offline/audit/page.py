"""The page of an audit log, as HTML that stands by itself and as a PNG beside it."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from guard.audit_log import read_lines
from guard.errors import DataError
from guard.offline.audit.figure import png
from guard.offline.audit.summary import AuditSummary

MAX_TABLE_ROWS = 20
ATLAS = {
    "AML.T0015": "Evade ML Model",
    "AML.T0043": "Craft Adversarial Data",
    "AML.T0029": "Denial of ML Service",
}


def write_page(log: Path, out: Path) -> AuditSummary:
    """Write the page to `out` and its picture beside it, with the suffix .png; return what they show.

    Raises:
        DataError: the log is none, or the page cannot be written.
    """
    if out.suffix.lower() == ".png":
        raise DataError(f"{out} is where the picture would be; name the page, such as {out.with_suffix('.html')}")
    summary = AuditSummary.of(read_lines(log))
    picture = png(summary)
    try:
        out.write_text(html(summary, picture, str(log)), encoding="utf-8")
        out.with_suffix(".png").write_bytes(picture)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}") from error
    return summary


def html(summary: AuditSummary, picture: bytes, log: str) -> str:
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
        atlas=[(name, ATLAS.get(name, ""), count) for name, count in summary.atlas.most_common()],
    )


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
