"""The report of a trial: what passed, what failed and what was skipped, by name, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from guard.errors import ConformanceError

Result = Literal["passed", "failed", "skipped"]
FORMAT_VERSION = 1
MAX_NAMED_CHECKS = 3
HEADS = {
    "details": "text",
    "trailers": "meta",
    "compression": "pack",
    "deadline": "time",
    "cancel": "stop",
    "limits": "size",
}
MARKS: dict[Result, tuple[str, str]] = {"passed": ("✓", "green"), "failed": ("✗", "bold red"), "skipped": ("–", "dim")}


@dataclass(frozen=True)
class Finding:
    """The result of one check of one remote procedure."""

    procedure: str
    check: str
    result: Result
    because: str = ""

    @property
    def name(self) -> str:
        return f"{self.procedure}/{self.check}"


@dataclass(frozen=True)
class ConformanceReport:
    """The findings of a whole trial, with what was tried."""

    upstream: str
    guard: str  # its address, or the mode of the guard that was started
    model: str
    made_by: str
    findings: Sequence[Finding]

    def of(self, result: Result) -> list[Finding]:
        return [finding for finding in self.findings if finding.result == result]

    def to_json(self) -> str:
        """The report as a file: names under passed, and names with reasons under failed and skipped."""
        raw = {
            "format": FORMAT_VERSION,
            **{key: value for key, value in asdict(self).items() if key != "findings"},
            "passed": [finding.name for finding in self.of("passed")],
            **{
                result: [{"name": finding.name, "because": finding.because} for finding in self.of(result)]
                for result in ("failed", "skipped")
            },
        }
        return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"


def parts(report: ConformanceReport) -> Iterator[RenderableType]:
    """Yield the table of procedures and checks, the failures, the reasons for what was skipped, and the counts."""
    checks = list(dict.fromkeys(finding.check for finding in report.findings))
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("", no_wrap=True, overflow="ellipsis")
    for check in checks:
        table.add_column(HEADS.get(check, check), justify="center", no_wrap=True)
    rows: dict[str, dict[str, Finding]] = {}
    for finding in report.findings:
        rows.setdefault(finding.procedure, {})[finding.check] = finding
    for name, row in rows.items():
        table.add_row(name.removeprefix("ModelRepositoryService."), *(mark(row.get(check)) for check in checks))
    yield table
    yield Text(", ".join(f"{head}: {check}" for check, head in HEADS.items()) + "\n", "dim")
    for finding in report.of("failed"):
        yield Text.assemble(("failed  ", "bold red"), f"{finding.name}: {finding.because}")
    reasons: dict[str, list[str]] = {}
    for finding in report.of("skipped"):
        reasons.setdefault(finding.because, []).append(finding.name)
    for reason, names in reasons.items():
        listed = ", ".join(names[:MAX_NAMED_CHECKS])
        listed += f" and {len(names) - MAX_NAMED_CHECKS} more" if len(names) > MAX_NAMED_CHECKS else ""
        yield Text.assemble(("skipped ", "dim"), f"{reason}: {listed}")
    counts = {result: len(report.of(result)) for result in MARKS}
    yield ", ".join(f"{count} {result}" for result, count in counts.items())


def mark(finding: Finding | None) -> Text:
    sign, style = ("", "") if finding is None else MARKS[finding.result]
    return Text(sign, style)


def check_report(report: ConformanceReport) -> None:
    """Raise ConformanceError where something failed."""
    if failed := report.of("failed"):
        named = ", ".join(finding.name for finding in failed[:MAX_NAMED_CHECKS])
        more = f" and {len(failed) - MAX_NAMED_CHECKS} more" if len(failed) > MAX_NAMED_CHECKS else ""
        raise ConformanceError(
            f"{len(failed)} of {len(report.findings)} checks failed: {named}{more}; the report says what differs"
        )
