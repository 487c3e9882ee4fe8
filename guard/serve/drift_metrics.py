"""The metrics of the drift watch, by model."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class DriftMetrics:
    """The evidence and the alarm of each model's traffic, and what was counted for them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Evidence that traffic is not what the bundle was calibrated on, as a power of ten"
        self.evidence = Gauge("guard_drift_evidence", text, ("model", "test"), registry=registry)
        text = "1 once the traffic was found not to be what the bundle was calibrated on"
        self.alarm = Gauge("guard_drift_alarm", text, ("model",), registry=registry)
        text = "Items that the drift watch has bet on"
        self.items = Counter("guard_drift_items_total", text, ("model",), registry=registry)
        text = "Near-copies of earlier items, which the drift watch has not counted again"
        self.repeats = Counter("guard_drift_repeats_total", text, ("model",), registry=registry)
        text = "Items that found no room in the drift watch's queue"
        self.lost = Counter("guard_drift_lost_items_total", text, ("model",), registry=registry)

    def begin(self, label: str) -> None:
        """Show a watch that begins anew for a model; its counters go on."""
        self.alarm.labels(label).set(0)
        for counter in (self.items, self.repeats, self.lost):
            counter.labels(label)
