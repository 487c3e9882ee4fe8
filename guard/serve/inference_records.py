"""The records of inferences: what metrics count and the log tells of a request, whatever protocol brought it.

Rule 1: a request is counted once, by what became of it: a verdict counts only if it was carried out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guard.errors import Rejected, RequestError
from guard.judge import Inspection
from guard.policy import Action
from guard.serve.audit.audit import Audit
from guard.serve.audit.events import query_fields
from guard.serve.failure_table import ALLOWED_MODEL, OF_GUARD, OFF, SHADOW_QUEUE, UNCHECKED, WANTED_UNCHECKED
from guard.serve.inference_call import InferenceCall
from guard.serve.inspector import label, verdict_fields
from guard.serve.log import Level, Log, Seldom
from guard.serve.metrics import OTHER, Metrics
from guard.serve.sampling import NOT_SAMPLED

REFUSAL_LOG_S = 0.05  # between two lines about refusals for one reason


@dataclass(frozen=True)
class InferenceRecords:
    """The metrics and the log of requests to models."""

    metrics: Metrics
    log: Log
    audit: Audit | None = None  # where the operator keeps one
    seldom: Seldom = field(init=False)

    def __post_init__(self) -> None:
        """Hold back lines about refusals where there are many."""
        object.__setattr__(self, "seldom", Seldom(REFUSAL_LOG_S, self.log))

    def count_items(self, model: str, items: Sequence[str]) -> None:
        for action, count in Counter(items).items():
            self.metrics.items.labels(model, action).inc(count)

    def count_unchecked(
        self, model: str, reason: str, call: InferenceCall, fields: Mapping[str, Any], cause: Exception | None
    ) -> None:
        """Count a request that passes uninspected, with a line in the log unless all of its model's do."""
        self.metrics.unchecked.labels(model, reason).inc()
        if reason in (OFF, ALLOWED_MODEL, SHADOW_QUEUE):
            return
        level: Level = "debug" if reason == NOT_SAMPLED else "warning"
        why = {} if cause is None else {"cause": str(cause), "because": because(cause)}
        self.log.write(level, UNCHECKED, {**call.names, "model": model, "reason": reason, **why, **fields})

    def count_call(self, call: InferenceCall) -> None:
        """Count a call that is over, once."""
        outcome = call.outcome
        decided = outcome is not None and (call.end == "answered" or isinstance(call.error, Rejected))
        action = outcome.action if decided else call.end
        known = call.guarded.label if call.guarded is not None and call.items else OTHER
        model = known if outcome is None else outcome.model
        self.metrics.ended(model, action)
        if outcome is None and call.items:
            self.metrics.items.labels(model, call.end).inc(call.items)
        if action == "refused":
            self.note_refusal(call)
        elif action == "failed":
            self.metrics.upstream_failures.labels(call.failure_code).inc()
        if self.audit is not None:
            self.audit_call(self.audit, call, model)
        if call.span is not None:
            call.span.end(call.ending, {"guard.id": call.id, "guard.model": model, "guard.action": action})

    def audit_call(self, audit: Audit, call: InferenceCall, model: str) -> None:
        """Have a call that is over audited, once; a fault of the audit is no call's."""
        outcome, audited = call.outcome, call.audited
        found = None if outcome is None else outcome.found
        try:
            if found is not None:
                audit.judged(call.names, outcome, found, call.end, audited, call.queried)
            elif outcome is not None and outcome.reason and outcome.reason not in WANTED_UNCHECKED:
                audit.unchecked(call.names, model, outcome.action, outcome.reason, call.queried, end=call.end)
            if audited is not None and call.guarded is not None:
                call.audited = None
                audit.sample(call.guarded, found, audited, call.queried)
        except Exception as error:  # noqa: BLE001  whatever it is, the request must not notice
            self.metrics.audit.count_lost("log", "error", 1)
            self.log.error("audit", **call.names, cause=repr(error))

    def count_seconds(self, call: InferenceCall) -> None:
        """Count how long a call took, by how it ended."""
        self.metrics.took(call.end, time.monotonic() - call.began)

    def note_refusal(self, call: InferenceCall) -> None:
        error = call.error
        reason = error.reason if isinstance(error, RequestError) else "INTERNAL"
        self.metrics.refused.labels(reason.lower()).inc()
        if not isinstance(error, OF_GUARD):
            self.log.debug("refused", **call.names, reason=reason, cause=str(error), because=because(error))
            return
        names, queried, why = call.names, call.queried, {"cause": str(error), "because": because(error)}
        model = OTHER if call.guarded is None else call.guarded.label

        def tell(held_back: int) -> None:
            self.log.warning("refused", **names, reason=reason, **why, held_back=held_back)
            if self.audit is not None:
                self.audit.unchecked(names, model, "refused", reason.lower(), queried, held_back=held_back)

        self.seldom.tell(reason, time.monotonic(), tell)

    def log_verdict(self, model: str, call: InferenceCall, found: Inspection, fields: Mapping[str, Any]) -> None:
        event = label(found.verdict.request, found.enacted)
        self.log.info(event, **call.names, model=model, **verdict_fields(found), **fields)

    def log_refused_query(self, model: str, call: InferenceCall, unchecked: str) -> None:
        """Log a request that is refused as part of a query attack, and that was not inspected for this reason."""
        facts = {"items": call.items, **query_fields(call.queried), "unchecked": unchecked}
        self.log.info(Action.REJECT.value, **call.names, model=model, **facts)


def because(error: BaseException | None) -> str | None:
    return repr(error.__cause__) if error is not None and error.__cause__ else None
