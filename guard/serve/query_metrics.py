"""The metrics of query memories, by model."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from guard.queries.evidence import MAX_SCORE

SCORE_BUCKETS = (0.5, 1.0, 2.0, 4.0, 8.0, MAX_SCORE, 16.0, 32.0)
SCOPES = ("principal", "shared")  # whose queries together are an attack's


class QueryMetrics:
    """The scores of requests, those that are query attacks, and the size of the memory."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Requests that are part of a query attack, by whose queries show it"
        self.attacks = Counter("guard_query_attacks_total", text, ("model", "scope"), registry=registry)
        text = f"Score of each request among its principal's queries; an attack's are beyond {MAX_SCORE:g}"
        self.scores = Histogram("guard_query_score", text, ("model",), buckets=SCORE_BUCKETS, registry=registry)
        text = "Bytes of the fingerprints that are remembered"
        self.size_bytes = Gauge("guard_query_memory_bytes", text, ("model",), registry=registry)

    def begin(self, label: str) -> None:
        """Name the children of a model before their first count."""
        for scope in SCOPES:
            self.attacks.labels(label, scope)
        self.scores.labels(label)
        self.size_bytes.labels(label)
