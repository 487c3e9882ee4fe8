"""The metrics of the guard, for Prometheus.

Rule 1: labels are bounded: what the operator configured or the protocol names; everything else is "other".
Rule 2: names begin with guard_, but for those that other tools know (grpc_server_handled_total, process_*, python_*);
        units are base units, and the registry is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from guard.cascade import Readings
from guard.fusion import Floats
from guard.serve.audit.metrics import AuditMetrics
from guard.serve.build import build_labels
from guard.serve.drift_metrics import DriftMetrics
from guard.serve.failure_table import REFUSED_REASONS, SHADOW_QUEUE, UNWANTED_UNCHECKED
from guard.serve.grpc.upstream import SERVICE
from guard.serve.inference_call import ENDS, End
from guard.serve.inspection_metrics import InspectionMetrics
from guard.serve.query_metrics import QueryMetrics
from guard.serve.sampling import NOT_SAMPLED

BUCKET_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BUCKET_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BUCKET_P_VALUES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
OTHER = "other"
STREAMS = ("ModelStreamInfer",)
LISTENERS = ("inference", "admin", "authz")
RELOADS = ("applied", "unchanged", "failed")
HELD = ("not_asked", "delivered", "discarded", "not_compared")
UNCHECKED_REASONS = (*UNWANTED_UNCHECKED, NOT_SAMPLED, SHADOW_QUEUE)
UPSTREAM_FAULTS = (  # statuses by which a model server says that the fault is its own
    *("UNAVAILABLE", "INTERNAL", "UNKNOWN", "ABORTED", "DATA_LOSS"),
    *("HTTP_500", "HTTP_502", "HTTP_503", "HTTP_504"),
)
SHADOWED = ("pass", "would_flag", "would_repair", "would_reject", "dropped", "failed")
ACTIONS = (
    *("pass", "flag", "repair", "reject"),
    *("would_flag", "would_repair", "would_reject"),  # in modes that do not do it
    *("unchecked", "refused", "failed", "expired", "cancelled"),
)


class PValues(Collector):
    """Histograms of p-values, one a set of labels, filled a request at a time: a loop over items costs too much."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self.name, self.help_text, self.labels = name, help_text, tuple(labels)
        self.counts: dict[tuple[str, ...], NDArray[np.int64]] = {}  # [bucket] by the labels' values
        self.sums: dict[tuple[str, ...], float] = {}

    def begin(self, *values: str) -> None:
        """Begin a histogram at zero, unless it is there."""
        self.sums.setdefault(values, 0.0)
        self.counts.setdefault(values, np.zeros(len(BUCKET_P_VALUES), dtype=np.int64))  # last: it makes it seen

    def observe(self, p_values: Floats, values: Sequence[tuple[str, ...]]) -> None:
        """Count p-values [item, histogram]; NaN where a detector did not run is no observation."""
        for column, histogram in enumerate(values):
            seen = p_values[:, column]
            seen = seen[~np.isnan(seen)]
            places = np.searchsorted(BUCKET_P_VALUES, np.minimum(seen, 1.0), side="left")
            np.add.at(self.counts[histogram], places, 1)
            self.sums[histogram] += float(seen.sum())

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self.name, self.help_text, labels=self.labels)
        for values, counts in list(self.counts.items()):  # another thread reads here
            cumulative = np.cumsum(counts)
            buckets = [(str(bound), float(count)) for bound, count in zip(BUCKET_P_VALUES, cumulative, strict=True)]
            family.add_metric(values, [*buckets, ("+Inf", float(cumulative[-1]))], sum_value=self.sums[values])
        yield family

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(self.name, self.help_text, labels=self.labels)]


class QueueMetrics:
    """The metrics of one bundle's queue, which bear the name of the model that it is loaded for.

    Nothing is shown before `show`: a bundle that a reload opens may never come to work.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.metrics, self.model = metrics, model
        self.drops, self.stage = metrics.dropped_requests, metrics.stage
        self.shown = False

    def show(self) -> None:
        """Name the children: the queue is at work from now on, and its breaker is closed."""
        self.shown = True
        self.rows = self.metrics.queue_rows.labels(self.model)
        self.batches = self.metrics.batch_rows.labels(self.model)
        self.failures = self.metrics.engine_failures.labels(self.model)
        self.metrics.breaker_open.labels(self.model).set(0)
        self.metrics.breaker_openings.labels(self.model)

    def queued(self, rows: int) -> None:
        if self.shown:
            self.rows.set(rows)

    def batched(self, rows: int) -> None:
        self.batches.observe(rows)

    def dropped(self, reason: str) -> None:
        self.drops.labels(self.model, reason).inc()

    def engine_failed(self) -> None:
        self.failures.inc()


class KeptCounter(Counter):
    """A counter whose children are found again by their labels' values at a tenth of the library's cost."""

    def labels(self, *values: Any, **named: Any) -> Any:
        return kept_child(self, super().labels, values, named)


class KeptHistogram(Histogram):
    """A histogram whose children are found again as those of `KeptCounter`."""

    def labels(self, *values: Any, **named: Any) -> Any:
        return kept_child(self, super().labels, values, named)


Child = TypeVar("Child")


def kept_child(metric: Any, find: Callable[..., Child], values: tuple[Any, ...], named: dict[str, Any]) -> Child:
    """The child with these labels' values, as the metric remembers it, or as `find` finds it."""
    if named:
        return find(*values, **named)
    known: dict[tuple[Any, ...], Child] = metric.__dict__.setdefault("kept", {})
    child = known.get(values)
    if child is None:
        child = known[values] = find(*values)
    return child


class Metrics:
    """The metrics of the guard on one registry."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        methods: Sequence[str],
    ) -> None:
        """Register the metrics; `guards` names the models whose labels they have."""
        self.registry = registry
        self.models: frozenset[str] = frozenset()  # whose names are labels: those guarded and those that pass
        self.methods = frozenset(methods)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return KeptCounter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str, buckets: Sequence[float]) -> Histogram:
            return KeptHistogram(name, text, labels, registry=registry, buckets=buckets)

        self.requests = counter("guard_requests_total", "ModelInfer requests by what became of them", "model", "action")
        self.request_children: dict[tuple[str, str], Counter] = {}
        self.items = counter("guard_items_total", "Items by what was decided for each", "model", "action")
        self.refused = counter("guard_refused_total", "ModelInfer requests refused without a verdict", "reason")
        self.unchecked = counter(
            "guard_unchecked_total", "ModelInfer requests that passed uninspected", "model", "reason"
        )
        self.held_answers = counter(
            "guard_held_answers_total",
            "ModelInfer requests whose verdict waited for the model, by what became of its answer",
            "fate",
        )
        self.calls = counter("guard_calls_total", "Calls of every other method", "method", "outcome")
        self.request_seconds = histogram(
            "guard_request_seconds", "ModelInfer, whole, by how it ended", "end", buckets=BUCKET_SECONDS
        )
        self.stage_seconds = histogram(
            "guard_stage_seconds", "decode, queue, program, repair, upstream", "stage", buckets=BUCKET_SECONDS
        )
        self.queue_rows = gauge("guard_queue_rows", "Rows waiting for the device", "model")
        self.batch_rows = histogram("guard_batch_rows", "Rows sent to the device at once", "model", buckets=BUCKET_ROWS)
        self.dropped_requests = counter(
            "guard_dropped_total", "Requests dropped from the queue before the device", "model", "reason"
        )
        self.engine_failures = counter("guard_engine_failures_total", "Batches on which the engine failed", "model")
        self.upstream_failures = counter(
            "guard_upstream_failures_total", "ModelInfer requests that the upstream failed, by its status", "code"
        )
        self.reopened = counter("guard_listener_reopened_total", "Times a listener had to be opened again", "listener")
        self.lost_lines = counter("guard_log_lines_lost_total", "Log lines lost since nobody read those before them")
        self.held_bytes = gauge("guard_bytes_in_flight", "Bytes of messages being read (at their largest) and held")
        self.compared = counter(
            "guard_upstream_compared_items_total", "Items whose upstream prediction was compared", "model"
        )
        self.disagreed = counter(
            "guard_upstream_disagreement_items_total",
            "Items for which the upstream predicts another class than the bundle",
            "model",
        )
        self.disagreement = gauge(
            "guard_upstream_disagreement_ratio",
            "Share of the last compared items on which bundle and upstream differ",
            "model",
        )
        self.measured_disagreement = gauge(
            "guard_bundle_disagreement_ratio",
            "Share of clean items on which bundle and served model differed in training: to be expected",
            "model",
        )
        self.ready = gauge(
            "guard_ready", "1 while the guard is ready: bundle checked, upstream ready and as the bundle expects"
        )
        self.upstream_ready = gauge(
            "guard_upstream_ready", "1 while the upstream is reachable, ready and as the bundle expects"
        )
        self.promised_rate = gauge(
            "guard_promised_rate", "Share of clean items that may be rejected, or flagged", "model", "action"
        )
        self.bundle_info = gauge(
            "guard_bundle_info", "1; the bundle at work", "digest", "model", "version", "fingerprint"
        )
        self.p_values = PValues("guard_p_value", "p-value of each inspected item", ["model"])
        self.detector_p_values = PValues(
            "guard_detector_p_value",
            "p-value of each detector for each inspected item, where it ran",
            ["model", "detector"],
        )
        for name in (self.name_standards, self.name_reloads, self.name_traffic):
            name(registry)
        self.name_what_is_not_inspected(counter, gauge)
        self.begin_at_zero()
        registry.register(self.p_values)
        registry.register(self.detector_p_values)

    def name_standards(self, registry: CollectorRegistry) -> None:
        """Create the metrics that have the same names everywhere, and the one of versions."""
        self.handled_calls = Counter(
            "grpc_server_handled_total",
            "Calls that are over, by the gRPC status with which they ended",
            ("grpc_type", "grpc_service", "grpc_method", "grpc_code"),
            registry=registry,
        )
        self.handled_children: dict[tuple[str, str], Counter] = {}
        self.handled_http = Counter(
            "guard_http_handled_total",
            "Requests over HTTP that are over, by the procedure that does the same over gRPC and by HTTP status",
            ("procedure", "code"),
            registry=registry,
        )
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        labels = build_labels()
        text = "1; the versions of the guard and of what it stands on"
        Gauge("guard_build_info", text, tuple(labels), registry=registry).labels(**labels).set(1)

    def name_what_is_not_inspected(self, counter: Callable[..., Counter], gauge: Callable[..., Gauge]) -> None:
        """Create the metrics of what callers do not wait for: a broken engine, and the shadow queue."""
        self.breaker_open = gauge(
            "guard_breaker_open", "1 while inspections are given up at once, since the engine is broken", "model"
        )
        self.breaker_openings = counter("guard_breaker_openings_total", "Times the breaker has opened", "model")
        self.shadow_requests = counter(
            "guard_shadow_requests_total", "Requests of the shadow queue by what became of them", "model", "action"
        )
        self.shadow_waiting = gauge("guard_shadow_waiting", "Requests that wait in the shadow queue")

    def name_traffic(self, registry: CollectorRegistry) -> None:
        """Create the metrics of what many requests show together."""
        self.drift, self.audit = DriftMetrics(registry), AuditMetrics(registry)
        self.queries, self.inspections = QueryMetrics(registry), InspectionMetrics(registry)

    def name_reloads(self, registry: CollectorRegistry) -> None:
        """Create the metrics of reloads."""
        self.reloads = Counter(
            "guard_reload_total",
            "Reloads of settings and bundles, by what came of them",
            ("result",),
            registry=registry,
        )
        self.reload_ok = Gauge(
            "guard_reload_successful", "1 unless the last reload of settings and bundles failed", registry=registry
        )
        self.reload_time = Gauge(
            "guard_reload_last_success_timestamp_seconds",
            "When settings and bundles were last read and found valid",
            registry=registry,
        )

    def begin_at_zero(self) -> None:
        """Name the children that matter before their first count, which then is a rise that an alarm can see."""
        self.end_seconds = {end: self.request_seconds.labels(end) for end in ENDS}
        for code in ("OK", "PERMISSION_DENIED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"):
            self.handled_calls.labels("unary", SERVICE, "ModelInfer", code)
        for known, values in ((self.reopened, LISTENERS), (self.held_answers, HELD), (self.reloads, RELOADS)):
            for value in values:
                known.labels(value)
        for code in UPSTREAM_FAULTS:
            self.upstream_failures.labels(code)
        for reason in UNCHECKED_REASONS:
            self.unchecked.labels(OTHER, reason)
        for reason in REFUSED_REASONS:
            self.refused.labels(reason)

    def reload_succeeded(self, timestamp_s: float) -> None:
        """Record that settings and bundles are valid, as they were read at this time."""
        self.reload_ok.set(1)
        self.reload_time.set(timestamp_s)

    def guards(self, model: str, detectors: Sequence[str]) -> None:
        """Name the children of a guarded model, by its label, with the detectors of its bundle."""
        self.inspections.begin(model, detectors)
        for action in ACTIONS:
            self.requests.labels(model, action)
            self.items.labels(model, action)
        for reason in UNCHECKED_REASONS:
            self.unchecked.labels(model, reason)
        for action in SHADOWED:
            self.shadow_requests.labels(model, action)
        for family in (self.compared, self.disagreed, self.disagreement):
            family.labels(model)
        self.p_values.begin(model)
        for detector in detectors:
            self.detector_p_values.begin(model, detector)

    def handled(self, method: str, code: str) -> None:
        """Count a call that is over, of a method by its name in metrics, with the name of its gRPC status."""
        child = self.handled_children.get((method, code))
        if child is None:
            kind = "bidi_stream" if method in STREAMS else "unary"
            service = OTHER if method == OTHER else SERVICE
            child = self.handled_children[method, code] = self.handled_calls.labels(kind, service, method, code)
        child.inc()

    def answered_http(self, procedure: str, status: int) -> None:
        """Count a request over HTTP that is over, by its procedure and the status that was told."""
        self.handled_http.labels(procedure, str(int(status))).inc()

    def ended(self, model: str, action: str) -> None:
        """Count a request that is over, by what became of it."""
        child = self.request_children.get((model, action))
        if child is None:  # looking a child up by its labels costs as much as all else here
            child = self.request_children[model, action] = self.requests.labels(model, action)
        child.inc()

    def took(self, end: End, seconds: float) -> None:
        """Count how long a request took, by how its call ended."""
        self.end_seconds[end].observe(seconds)

    def model(self, name: str) -> str:
        """The label for a model name that a client sent."""
        return name if name in self.models else OTHER

    def method(self, name: str) -> str:
        return name if name in self.methods else OTHER

    def inspected(self, model: str, detectors: Sequence[str], readings: Readings, programs: Sequence[int]) -> None:
        """Count the p-values of one request's items, and of their detectors, so many in each program."""
        self.p_values.observe(readings.p_value[:, None], [(model,)])
        self.detector_p_values.observe(readings.detector_p, [(model, detector) for detector in detectors])
        self.inspections.count_silent(model, detectors, readings, programs)

    def predictions(self, model: str, own: NDArray[np.int64], upstream: NDArray[np.int64]) -> int:
        """Count the items [item] on which bundle and upstream disagree, and return their number."""
        different = int((own != upstream).sum())
        self.compared.labels(model).inc(len(own))
        self.disagreed.labels(model).inc(different)
        return different

    def stage(self, name: str, seconds: float) -> None:
        self.stage_seconds.labels(name).observe(seconds)
