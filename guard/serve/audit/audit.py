"""The audit of a serving guard: what of each call that is over goes into the log, the sample and the sink.

Rule 1: it is asked when a call's input is there, and once when the call is over; neither waits, fails or decides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from guard.audit_log import AuditLog
from guard.config import ServeConfig
from guard.judge import Inspection
from guard.policy import Action
from guard.queries.memory import QueryFinding
from guard.serve.audit.background import Background
from guard.serve.audit.event_sink import EventSink
from guard.serve.audit.events import (
    Event,
    as_json,
    evidence_fields,
    kept_item,
    line_of,
    query_fields,
    tensor_fields,
    unchecked_event,
    verdict_event,
)
from guard.serve.audit.metrics import AuditMetrics
from guard.serve.audit.traffic_sampling import TrafficSampling
from guard.serve.guarded_model import GuardedModel
from guard.serve.outcome import Outcome
from guard.traffic_sample import SampledItems

MAX_WAITING_BYTES = 8 << 20  # of lines
PRUNE_S = 60.0  # after which a guard that writes nothing looks for lines that are too old


class Sink(Protocol):
    """What takes events beside the log."""

    def send(self, event: Event, kept: NDArray[Any] | None = None) -> None: ...


@dataclass(frozen=True, eq=False)
class AuditedInput:
    """The items of a call that the audit may need once the call is over."""

    images: NDArray[Any]  # [item, ...] as on the wire
    drawn: NDArray[np.bool_]  # [item] whether it is in the sample
    seconds: float  # Unix time of arrival


class LogOfEvents:
    """An audit log behind a thread and a bounded queue."""

    def __init__(self, log: AuditLog, metrics: AuditMetrics) -> None:
        """Take the log, and start the thread that writes to it."""
        self.log, self.metrics = log, metrics
        self.background = Background(
            "audit",
            max_waiting_bytes=MAX_WAITING_BYTES,
            lost=metrics.losing("log"),
            idle=self.prune,
            idle_s=PRUNE_S,
        )

    def send(self, event: Event, kept: NDArray[Any] | None = None) -> None:
        """Take an event to be written as a line, with the input that it kept."""
        text = as_json(event).encode()
        size_bytes = len(text) + (0 if kept is None else kept.nbytes * 4 // 3)
        self.background.submit(size_bytes, partial(self.write, text, kept))

    def write(self, event: bytes, kept: NDArray[Any] | None) -> None:
        """Write a line; called on the thread. Raises OSError."""
        self.log.append(line_of(event, kept), time.time())
        self.metrics.written.labels("log").inc()

    def prune(self) -> None:
        """Remove what is too old, though nothing is written; called on the thread. Raises OSError."""
        self.log.prune(time.time())


@dataclass(frozen=True, eq=False)
class Audit:
    """The sinks of events and the sample, each there where the operator asked for it."""

    sinks: tuple[Sink, ...] = ()
    sampling: TrafficSampling | None = None
    keeps_inputs: bool = False

    def arrived(self, images: NDArray[Any]) -> AuditedInput | None:
        """What has to be kept of a request's items until its end; asked before they are inspected."""
        drawn = np.zeros(len(images), dtype=np.bool_) if self.sampling is None else self.sampling.draw(len(images))
        if not self.keeps_inputs and not bool(drawn.any()):
            return None
        return AuditedInput(images, drawn, time.time())

    def judged(
        self,
        names: Mapping[str, Any],
        outcome: Outcome,
        found: Inspection,
        end: str,
        audited: AuditedInput | None,
        queried: QueryFinding | None = None,
    ) -> None:
        """Take a request that is over, and that was inspected; `queried` is what the memory of queries tells of it."""
        queries = query_fields(queried)
        if not self.sinks or (found.verdict.request is Action.PASS and not queries):
            return
        digest = None if outcome.guarded is None else outcome.guarded.bundle.digest
        event = verdict_event(names, outcome.model, outcome.action, found, end, bundle=digest, queries=queries)
        kept = None
        if self.keeps_inputs and audited is not None:
            worst = audited.images[found.worst]
            kept = kept_item(worst)
            event |= evidence_fields(found) | ({"input": tensor_fields(worst)} if kept is None else {})
            if outcome.guarded is not None:
                event["input_name"] = outcome.guarded.spec.input.name
        self.send(event, kept)

    def unchecked(
        self,
        names: Mapping[str, Any],
        model: str,
        action: str,
        reason: str,
        queried: QueryFinding | None = None,
        **facts: Any,
    ) -> None:
        """Take a request that is over, and that could not be inspected; `queried` as for `judged`."""
        if self.sinks:
            self.send(unchecked_event(names, model, action, reason, query_fields(queried), **facts))

    def send(self, event: Event, kept: NDArray[Any] | None = None) -> None:
        """Hand an event, and the input that it kept, to every sink."""
        for sink in self.sinks:
            sink.send(event, kept)

    def sample(
        self,
        guarded: GuardedModel,
        found: Inspection | None,
        audited: AuditedInput,
        queried: QueryFinding | None = None,
    ) -> None:
        """Keep the drawn items of a request that is over, however it ended; `queried` as for `judged`."""
        if self.sampling is None or not bool(audited.drawn.any()):
            return
        drawn, items = audited.drawn, len(audited.images)
        rejected, p_values = np.zeros(items, dtype=np.bool_), np.full(items, np.nan)
        if found is not None:
            whole = guarded.policy.rows == "request"
            verdicts = [found.verdict.request] * items if whole else found.verdict.items
            rejected[:] = [verdict is Action.REJECT for verdict in verdicts]
            p_values[:] = found.readings.p_value
        if guarded.queries is not None and guarded.queries.refuses(queried):
            rejected[:] = True
        seconds = np.full(int(drawn.sum()), audited.seconds)
        self.sampling.keep(
            guarded.bundle, SampledItems(audited.images[drawn], rejected[drawn], p_values[drawn], seconds)
        )


@contextmanager
def auditing(config: ServeConfig, metrics: AuditMetrics) -> Iterator[Audit | None]:
    """Keep what the settings ask for within the block; at its end what was taken may be written, for a second."""
    with ExitStack() as stack:
        sinks: list[Sink] = []
        sampling = None
        if config.audit_dir is not None:
            folder = Path(config.audit_dir)
            written = LogOfEvents(AuditLog(folder, config.audit_max_bytes, config.audit_max_age_s), metrics)
            stack.callback(written.background.close)
            sinks.append(written)
            if config.sample_share > 0:
                sampling = TrafficSampling(
                    folder / "sample", config.sample_share, config.audit_max_bytes, config.audit_max_age_s, metrics
                )
                stack.callback(sampling.close)
        if config.events_sink is not None:
            sink = EventSink(config.events_sink, config.events_namespace, metrics)
            stack.callback(sink.background.close)
            sinks.append(sink)
        yield Audit(tuple(sinks), sampling, config.audit_inputs) if sinks else None
