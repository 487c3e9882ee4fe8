"""The metrics of the audit: what was written, and what was lost and why."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter

KEPT = {  # what is written or sent, and the reasons for which it may be lost
    "log": ("queue_full", "disk_full", "error", "closed"),
    "sample": ("queue_full", "disk_full", "error", "closed"),
    "sink": ("queue_full", "unreachable", "timeout", "status", "error", "closed"),
}


class AuditMetrics:
    """Counts by `of`: lines of the log, items of the sample, events to the sink."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics; every series begins at zero."""
        text = "Lines of the audit log, items of the sample and events to the sink that were written or delivered"
        self.written = Counter("guard_audit_written_total", text, ("of",), registry=registry)
        text = "Lines of the audit log, items of the sample and events to the sink that were lost"
        self.lost = Counter("guard_audit_lost_total", text, ("of", "reason"), registry=registry)
        for of, reasons in KEPT.items():
            self.written.labels(of)
            for reason in reasons:
                self.lost.labels(of, reason)

    def losing(self, of: str) -> partial[None]:
        """A function of reason and number that counts what was lost of a kind."""
        return partial(self.count_lost, of)

    def count_lost(self, of: str, reason: str, count: int) -> None:
        """Count what was lost."""
        self.lost.labels(of, reason).inc(count)
