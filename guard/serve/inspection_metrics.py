"""The metrics of inspections, by model: how long they take and may take, and what stands behind their verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from guard.cascade import Readings

BUCKET_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class InspectionMetrics:
    """The time of inspections that ended in a verdict, detectors that gave none a score, and the bundle at work."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "The guard's own part of a request, from its message's arrival to the verdict, where there was one"
        self.seconds = Histogram(
            "guard_inspection_seconds", text, ("model",), buckets=BUCKET_SECONDS, registry=registry
        )
        text = "What an inspection may take before it counts as failed: inspect_timeout_s"
        self.budget_s = Gauge("guard_inspection_budget_seconds", text, ("model",), registry=registry)
        text = "Items that a detector's program has read, and for which the detector gave no number"
        self.silent = Counter("guard_detector_silent_items_total", text, ("model", "detector"), registry=registry)
        text = "Clean items that the bundle's p-values are ranks among"
        self.calibration_items = Gauge("guard_calibration_items", text, ("model",), registry=registry)
        text = "When the bundle was put to work"
        self.loaded_s = Gauge("guard_bundle_loaded_timestamp_seconds", text, ("model",), registry=registry)

    def begin(self, model: str, detectors: Sequence[str]) -> None:
        """Name the children of a model, with its bundle's detectors."""
        self.seconds.labels(model)
        for detector in detectors:
            self.silent.labels(model, detector)

    def took(self, model: str, seconds: float) -> None:
        """Count the time of an inspection that ended in a verdict."""
        self.seconds.labels(model).observe(seconds)

    def count_silent(self, model: str, detectors: Sequence[str], readings: Readings, programs: Sequence[int]) -> None:
        """Count the items for which a detector ran, and its score is no number; each program has so many detectors.

        For example in a cascade the detectors of the second program do not run for an item that the first one rejects:
        they are not silent there. Of the model's own answer, behind them, nothing is counted: it may not be there yet.
        """
        missing = np.isnan(readings.detector_p[:, : sum(programs)])
        if not missing.any():
            return
        ran = np.repeat(np.arange(len(programs)), programs) <= readings.program[:, None]
        for detector, count in zip(detectors, (missing & ran).sum(axis=0), strict=False):
            if count:
                self.silent.labels(model, detector).inc(int(count))
