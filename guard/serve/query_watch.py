"""The watch over the queries to one model while it serves: a query memory on a thread of its own.

Rule 1: under "watch" no request fails for it or gets another verdict for it.
Rule 2: the thread alone owns the memory, and tells what it found; requests are seen in the order in which they were
        decoded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import ConfigError
from guard.judge import Inspection
from guard.manifest import InputSpec
from guard.model_config import ModelConfig
from guard.policy import Action, Policy
from guard.queries.fingerprint import Fingerprinter
from guard.queries.memory import QueryFinding, QueryMemory
from guard.serve.log import Log, Seldom
from guard.serve.query_metrics import QueryMetrics

ATTACK_LOG_S = 0.05  # between two lines about query attacks of one scope
REASON = "query_attack"


class QueryWatch:
    """A watch that is handed every decoded request to a model."""

    def __init__(
        self,
        spec: InputSpec,
        *,
        config: ModelConfig,
        label: str,
        metrics: QueryMetrics,
        log: Log,
        typical_distance: float | None = None,
    ) -> None:
        """Watch the queries to a model named `label`, as its settings want; `typical_distance` as for QueryMemory."""
        self.spec, self.config, self.label, self.metrics, self.log = spec, config, label, metrics, log
        self.rejects = config.query_memory == "reject"
        shape = spec.box.to_unit(np.zeros((1, *spec.shape), dtype=spec.box.dtype)).shape[1:]
        self.fingerprinter = Fingerprinter(shape, np.random.default_rng())
        self.memory = QueryMemory(self.fingerprinter, streams=config.query_streams, typical_distance=typical_distance)
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="queries")
        self.seldom = Seldom(ATTACK_LOG_S, log)
        self.over = False  # after a failure, under "watch"
        metrics.begin(label)

    @staticmethod
    def of(
        config: ModelConfig,
        spec: InputSpec,
        *,
        label: str,
        metrics: QueryMetrics,
        log: Log,
        before: QueryWatch | None,
        typical_distance: float | None = None,
    ) -> QueryWatch | None:
        """Build what a model's settings want; a memory of the same input that was at work `before` goes on."""
        if config.query_memory == "off":
            return None
        watch = QueryWatch(
            spec, config=config, label=label, metrics=metrics, log=log, typical_distance=typical_distance
        )
        if before is not None and before.compares_like(watch):
            watch.fingerprinter, watch.memory, watch.thread = before.fingerprinter, before.memory, before.thread
        return watch

    def compares_like(self, other: QueryWatch) -> bool:
        """Whether two watches see the same in the same queries."""
        alike = self.memory.copy_distance == other.memory.copy_distance
        return alike and self.spec == other.spec and self.config.query_streams == other.config.query_streams

    async def see(self, images: NDArray[Any], principal: str, names: Mapping[str, Any]) -> QueryFinding | None:
        """Score the wire inputs [item, ...] of a request and remember them; None once the watch is over."""
        if self.over:
            return None
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.thread, self.remember, images, principal, names)
        except Exception as error:
            if self.rejects:
                raise
            self.over = True
            self.log.error("queries are no longer watched", model=self.label, cause=repr(error))
            return None

    def remember(self, images: NDArray[Any], principal: str, names: Mapping[str, Any]) -> QueryFinding:
        """Score, remember and tell of a request; called on the thread."""
        prints = self.fingerprinter.of(self.spec.box.to_unit(images))
        found = self.memory.see(principal, prints, time.monotonic())
        self.tell(found, names)
        return found

    def tell(self, found: QueryFinding, names: Mapping[str, Any]) -> None:
        """Count a request, and write a line in the log where it is an attack's; called on the thread."""
        self.metrics.scores.labels(self.label).observe(found.own)
        self.metrics.size_bytes.labels(self.label).set(self.memory.size_bytes)
        if not (found.is_attack or found.is_shared_attack):
            return
        scope = "principal" if found.is_attack else "shared"
        self.metrics.attacks.labels(self.label, scope).inc()
        fields = {"scope": scope, "rejects": self.refuses(found), **score_fields(found)}

        def tell(held_back: int) -> None:
            self.log.warning(REASON, **names, model=self.label, **fields, held_back=held_back)

        self.seldom.tell(scope, time.monotonic(), tell)

    def refuses(self, finding: QueryFinding | None) -> bool:
        """Whether a request is to be rejected for its queries, whatever else is found of it."""
        return self.rejects and finding is not None and finding.is_attack

    def rejected(self, found: Inspection, finding: QueryFinding | None, policy: Policy) -> Inspection | None:
        """The inspection of a request that is rejected as a query attack; None for all others."""
        if not self.refuses(finding):
            return None
        verdict = replace(found.verdict, request=Action.REJECT)
        return replace(found, verdict=verdict, enacted=policy.enact(Action.REJECT))


def score_fields(found: QueryFinding) -> dict[str, Any]:
    """The fields of a log line about a request's queries."""
    return {
        "query_score": round(found.own, 2),
        "shared_query_score": round(found.shared, 2),
        "near_copies": found.near,
        "repeats": found.repeats,
    }


def check_watchable(config: ModelConfig, spec: InputSpec) -> None:
    """Raise ConfigError where the queries to a model have nothing to be compared by."""
    if config.query_memory != "off" and not spec.axes.places:
        raise ConfigError(
            f'query_memory = "{config.query_memory}" needs images or series, and the bundle\'s items are rows of a '
            'table, of which unrelated ones are often alike; set query_memory = "off" for this model'
        )


def unseen_requests(config: ModelConfig) -> str:
    """Words for the requests to a model that its query memory never sees; empty where it sees all, or is off."""
    if config.query_memory == "off":
        return ""
    if config.mode == "off" or (config.mode == "shadow" and config.shadow == "queue"):
        why = "nothing is inspected" if config.mode == "off" else 'shadow = "queue" lets requests pass first'
        return f'query_memory = "{config.query_memory}" has no effect: {why}'
    if config.sample < 1:
        return (
            f'query_memory = "{config.query_memory}" sees {config.sample:.4g} of all requests (sample = '
            f"{config.sample:g}); the others pass unseen"
        )
    return ""
