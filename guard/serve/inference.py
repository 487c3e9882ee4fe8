"""The inference of one request, whatever protocol brought it: it is inspected, and forwarded or refused.

Where a model's `forward` is "before", a request that is not rejected already is forwarded, the model's answer is held
and read, and the verdict on both decides whether it is delivered or discarded. Where it is "together", the model is
asked while the request is inspected, and its answer held until the verdict.

Rule 1: what was inspected is what is forwarded: the bytes as they came. REPAIR alone re-encodes, and logs both hashes.
Rule 2: what could not be inspected passes only where mode or on_failure say so; then it is marked and counted.
Rule 3: a caller learns PASS or REJECT, never a score, an item or a detector.
Rule 4: an answer that is held is delivered after a verdict only; one that cannot be compared is a failed inspection.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from guard.errors import GuardError, InspectionTimeout, Overloaded, Rejected, Unchecked
from guard.judge import Inspection
from guard.manifest import OutputSpec
from guard.policy import Action
from guard.queries.memory import QueryFinding
from guard.serve.admission import Admission
from guard.serve.aside import Aside
from guard.serve.client_queues import ClientQueues
from guard.serve.early_answer import EarlyAnswer
from guard.serve.exchange import AskedModel, Exchange
from guard.serve.failure_table import ALLOWED_MODEL, BREAKER_OPEN, OFF, SHADOW_QUEUE
from guard.serve.guarded_model import GuardedModel
from guard.serve.inference_call import UNCHECKED, InferenceCall
from guard.serve.inference_records import InferenceRecords
from guard.serve.inspector import label
from guard.serve.metrics import OTHER
from guard.serve.models import Models, ModelTable
from guard.serve.outcome import Outcome, Undecided
from guard.serve.query_watch import REASON, QueryWatch
from guard.serve.request_span import Tracing
from guard.serve.sampling import NOT_SAMPLED
from guard.serve.shadow_queue import ShadowQueue, ShadowRequest
from guard.serve.tensor import Decoded, tensor_digest

QUERY_PATIENCE_S = 0.05  # for the memory of queries, where a call came too late for an inspection
READ_PATIENCE_S = 0.25  # for a message, before its call no longer counts among those that others wait for
NEVER_BEGUN = (
    OFF,
    ALLOWED_MODEL,
    NOT_SAMPLED,
    BREAKER_OPEN,
    SHADOW_QUEUE,
)  # why none took any time
NOTHING: Mapping[str, Any] = {}
Found = TypeVar("Found")
Answer = TypeVar("Answer")


@dataclass(kw_only=True)
class Inference:
    """What all doors do with a request to a model: admit, inspect, forward, and count it."""

    models: Models
    records: InferenceRecords
    aside: Aside
    shadow: ShadowQueue
    tracing: Tracing | None = None  # where requests are traced

    def __post_init__(self) -> None:
        self.metrics, self.log = self.records.metrics, self.records.log
        self.queues = ClientQueues()
        self.models.listeners.append(self.follow)
        self.follow(self.models.table)

    def follow(self, table: ModelTable) -> None:
        """Set what is asked before a request's model is known: by all models together."""
        self.off = table.strictest_mode == "off"
        self.queues.replace([loaded.admission for loaded in table.loaded])
        self.budget_s = table.inspect_timeout_s
        self.passes_late = table.passes_late

    def enter(self, call: InferenceCall) -> None:
        """Find a place among the calls that are being inspected, before a call's message is read. Raises Overloaded."""
        now = time.monotonic()
        self.begin(call, now)
        if self.off:
            return
        try:
            call.place = self.queues.enter(now, call.deadline - now, self.budget_s)
        except Overloaded:
            if not self.passes_late:
                raise
            call.inspect_by = -math.inf
            return
        self.be_patient(call)

    def begin(self, call: InferenceCall, now: float) -> None:
        """Begin the time for a call's inspection, and its span."""
        if self.tracing is not None and call.span is None:
            call.span = self.tracing.begin(call.traced, ago_s=now - call.began)
        call.budget_s, call.inspect_by = self.budget_s, now + self.budget_s

    def be_patient(self, call: InferenceCall) -> None:
        """Let a call hold its place for a while, in which its message has to come."""
        if call.place is not None:
            call.patience = asyncio.get_running_loop().call_later(READ_PATIENCE_S, call.place.tear)

    async def infer(self, exchange: Exchange[Answer], call: InferenceCall) -> Answer:
        """Inspect a request that is here, and return the model server's answer.

        Raises:
            RequestError: it is refused.
            Exception: the model server's own, as `Exchange.ask` raises it.
        """
        if call.patience is not None:
            call.patience.cancel()
        call.inspect_by += time.monotonic() - call.began  # the message's way here is no part of the guard's time
        early = EarlyAnswer(partial(self.ask, exchange, call))
        try:
            outcome = await self.placed(exchange, call, early)
            if isinstance(outcome, Undecided):
                return await self.hold(outcome, exchange, call)
            self.settle(outcome, call)
            return await self.forward(outcome, exchange, call, early)
        finally:
            self.end_early(early)

    def end_early(self, early: EarlyAnswer[Any]) -> None:
        """Cancel a call to the model server that nothing waits for, and count what became of its answer."""
        if early.has_begun:
            early.give_up()
            self.metrics.held_answers.labels("delivered" if early.wanted else "discarded").inc()

    async def inspect_alone(self, exchange: Exchange[Any], call: InferenceCall) -> None:
        """Inspect a request that others forward: where it may pass, the verdict is in the call.

        Raises:
            RequestError: it is refused.
        """
        self.enter(call)
        if call.patience is not None:
            call.patience.cancel()
        outcome = await self.placed(exchange, call)
        if isinstance(outcome, Undecided):
            raise Unchecked("this door does not hold the model's answer, for which the verdict waits")
        self.settle(outcome, call)

    async def placed(
        self, exchange: Exchange[Any], call: InferenceCall, early: EarlyAnswer[Any] | None = None
    ) -> Outcome | Undecided:
        """Inspect a request, and give the call's place back once that is done."""
        outcome = await self.examine(exchange, call, early)
        if (guarded := outcome.guarded) is not None and math.isfinite(call.inspect_by):
            spent_s = guarded.config.inspect_timeout_s - (call.inspect_by - time.monotonic())
            self.metrics.inspections.took(guarded.label, spent_s)
        if call.place is not None:
            call.place.leave(time.monotonic(), inspected=True)
        return outcome

    def settle(self, outcome: Outcome, call: InferenceCall) -> None:
        """Record and count what was decided on a request. Raises Rejected where that is so."""
        call.told, call.outcome = outcome.told, outcome
        self.records.count_items(outcome.model, outcome.items)
        if call.told == Action.REJECT:
            kept_away = "" if outcome.answered else ", so it was not forwarded to the model"
            raise Rejected(
                f"refused by the guard: the input looks adversarial{kept_away}; if it is genuine, give the operator "
                f"guard-id {call.name}"
            )

    async def examine(
        self, exchange: Exchange[Any], call: InferenceCall, early: EarlyAnswer[Any] | None
    ) -> Outcome | Undecided:
        """Inspect a request; where that fails, mode and on_failure decide whether it passes."""
        if self.off:
            return self.unchecked(OTHER, OFF, call)
        return await self.checked(self.inspect(exchange, call, early), call)

    async def checked(self, inspecting: Awaitable[Found], call: InferenceCall) -> Found | Outcome:
        """Await an inspection; where it fails, mode and on_failure decide whether the request passes."""
        try:
            return await inspecting
        except Exception as error:
            ours = not isinstance(error, GuardError)
            if ours:  # a fault of ours must not become a way past the guard
                self.log.error("internal", **call.names, cause=repr(error))
            table, guarded = self.models.table, call.guarded or self.models.table.only
            reason = table.unchecked(error) if guarded is None else guarded.inspector.unchecked(error)
            if reason is not None:
                if guarded is not None and self.is_refused_query(guarded, call):
                    return self.refused_query(guarded, reason, call)
                return self.unchecked(OTHER if guarded is None else guarded.label, reason, call, cause=error)
            if ours:
                raise Unchecked("the guard failed while inspecting this request") from error
            raise

    def read(self, exchange: Exchange[Any], call: InferenceCall) -> tuple[AskedModel, Decoded | None]:
        """Parse a request, find its model, and decode its tensor unless that is not inspected.

        Raises:
            MalformedRequest, Uninspectable: as `Exchange.named` and `Exchange.decode`.
            UnknownModel, Unchecked: as `Models.find`.
        """
        asked = exchange.named()
        call.message_id = asked.request_id
        guarded = call.guarded = self.models.find(asked.name, asked.version, exchange.versions)
        if guarded is None or guarded.policy.mode == "off" or guarded.is_shadowed_later:
            return asked, None
        return asked, exchange.decode(guarded.spec.input, max_items=guarded.inspector.max_items)

    async def inspect(
        self, exchange: Exchange[Any], call: InferenceCall, early: EarlyAnswer[Any] | None
    ) -> Outcome | Undecided:
        began = time.monotonic()
        asked, decoded = await self.aside(exchange.size_bytes, partial(self.read, exchange, call))
        guarded: GuardedModel | None = call.guarded
        if guarded is None:
            return self.unchecked(self.metrics.model(asked.name), ALLOWED_MODEL, call)
        if guarded.is_shadowed_later:
            return self.shadowed_later(guarded, exchange, call)
        if decoded is None:
            return self.unchecked(guarded.label, OFF, call)
        call.items = len(decoded.images)
        if not guarded.sampling.takes(call.name):
            return self.unchecked(guarded.label, NOT_SAMPLED, call, guarded.sampling.fields(call.name))
        call.inspect_by += guarded.config.inspect_timeout_s - call.budget_s
        if guarded.queries is not None:  # before all that may fail: what it finds counts then, too
            call.queried = await self.queried(guarded.queries, decoded, call)
        self.move(call, guarded.loaded.admission)
        took = time.monotonic() - began
        self.metrics.stage("decode", took)
        if call.span is not None:
            call.span.stage("guard.decode", took, {"guard.items": call.items})
        inspector = guarded.inspector
        if self.records.audit is not None:
            call.audited = self.records.audit.arrived(decoded.images)
        if early is not None and guarded.config.forward == "together" and not asked.in_sequence:
            inspector.check(call.items)
            early.begin()
        found = await inspector.inspect(decoded.images, call.deadline, call.inspect_by)
        if guarded.loaded.drift is not None:
            guarded.loaded.drift.see(decoded.images, found.readings)
        if guarded.queries is not None and (refused := guarded.queries.rejected(found, call.queried, guarded.policy)):
            return self.decided(guarded, refused, call, {"reason": REASON})
        if (answers := inspector.answers) is not None:
            before = inspector.before_answer(found, answers)
            if before.enacted is not Action.REJECT:
                return Undecided(guarded, found, answers)
            self.metrics.held_answers.labels("not_asked").inc()
            return self.decided(guarded, before, call, {"model_asked": False})
        if found.enacted is Action.REPAIR:
            return await self.repair(guarded, exchange, decoded, found, call)
        asked_fields = {"model_asked": True} if early is not None and early.has_begun else NOTHING
        return self.decided(guarded, found, call, asked_fields)

    async def queried(self, queries: QueryWatch, decoded: Decoded, call: InferenceCall) -> QueryFinding | None:
        """What the memory of queries tells of a request; under "watch" None where that takes half of the time there is.

        Raises:
            Expired, InspectionTimeout: under "reject" the client's deadline, or the time for the inspection, passed.
        """
        left_s = call.inspect_by - time.monotonic()
        patience_s = max(left_s if queries.rejects else left_s / 2, QUERY_PATIENCE_S)
        try:
            async with asyncio.timeout(min(patience_s, call.deadline - time.monotonic())):
                return await queries.see(decoded.images, call.principal, call.names)
        except TimeoutError:
            if not queries.rejects:
                return None
            call.remaining_s()
            raise InspectionTimeout("the memory of queries did not answer within inspect_timeout_s") from None

    def is_refused_query(self, guarded: GuardedModel, call: InferenceCall) -> bool:
        """Whether a request is refused as part of a query attack, whatever its inspection finds."""
        wanted = guarded.queries is not None and guarded.queries.refuses(call.queried)
        return wanted and guarded.policy.enact(Action.REJECT) is Action.REJECT

    def refused_query(self, guarded: GuardedModel, reason: str, call: InferenceCall) -> Outcome:
        """The outcome of a query attack's request that would pass unchecked for this reason: logged, and refused."""
        self.records.log_refused_query(guarded.label, call, reason)
        action = Action.REJECT.value
        return Outcome(guarded.label, action, (action,) * call.items, action, guarded, reason=REASON)

    def shadowed_later(self, guarded: GuardedModel, exchange: Exchange[Any], call: InferenceCall) -> Outcome:
        """Let a request pass that is inspected afterwards, if it is sampled and the shadow queue has room."""
        if not guarded.sampling.takes(call.name):
            return self.unchecked(guarded.label, NOT_SAMPLED, call, guarded.sampling.fields(call.name))
        decoder = exchange.decoder(guarded.spec.input, max_items=guarded.inspector.max_items)
        self.shadow.offer(ShadowRequest(guarded, decoder, exchange.size_bytes, call.names))
        return self.unchecked(guarded.label, SHADOW_QUEUE, call)

    def move(self, call: InferenceCall, admission: Admission) -> None:
        """Give a call that was let in before its model was known its place at the right queue. Raises Overloaded."""
        if len(self.queues.admissions) > 1:
            self.queues.note(call.client, admission)
        if call.place is None or call.place.of is admission:
            return
        call.place.withdraw()
        now = time.monotonic()
        call.place = admission.enter(now, call.deadline - now, call.inspect_by - now)

    def decided(
        self, guarded: GuardedModel, found: Inspection, call: InferenceCall, fields: Mapping[str, Any] = NOTHING
    ) -> Outcome:
        """The outcome of an inspection that is over: counted, and logged with further `fields`."""
        readings = found.readings
        if call.span is not None:
            call.span.mark({"guard.p_value": float(readings.p_value.min())})
        self.metrics.inspected(guarded.label, found.detectors, readings, guarded.bundle.calibration.programs)
        if found.verdict.request is not Action.PASS:
            self.records.log_verdict(guarded.label, call, found, {**fields, **guarded.sampling.fields(call.name)})
        told = found.enacted if guarded.config.tell_flags or found.enacted is Action.REJECT else Action.PASS
        return Outcome(
            model=guarded.label,
            action=label(found.verdict.request, found.enacted),
            items=guarded.inspector.item_labels(found.verdict),
            told=told.value,
            guarded=guarded,
            prediction=readings.prediction if found.enacted is not Action.REPAIR else None,
            found=found,
        )

    async def hold(self, undecided: Undecided, exchange: Exchange[Answer], call: InferenceCall) -> Answer:
        """Ask the model, hold its answer until the verdict on both, and return it then, or discard it."""
        answer = await self.ask(exchange, call)
        self.settle(await self.checked(self.weigh(undecided, answer, exchange, call), call), call)
        return answer

    async def weigh(
        self, undecided: Undecided, answer: Answer, exchange: Exchange[Answer], call: InferenceCall
    ) -> Outcome:
        """Decide on a request by the model's answer to it. Raises Unchecked where that cannot be compared."""
        found, guarded = undecided.found, undecided.guarded
        output = guarded.spec.output
        named = await self.named_by(answer, output, exchange, call)
        if named is None or not bool(((named >= 0) & (named < output.classes)).all()):
            self.metrics.held_answers.labels("not_compared").inc()
            raise Unchecked(
                "the model's answer does not show a class of each item, so the guard could not compare it; "
                f"ask for output {output.name!r}"
            )
        guarded.comparison.compare(found.readings.prediction, named)
        judged = guarded.inspector.after_answer(found, undecided.answers, named)
        rejected = judged.enacted is Action.REJECT
        self.metrics.held_answers.labels("discarded" if rejected else "delivered").inc()
        return self.decided(guarded, judged, call, {"model_asked": True})

    async def repair(
        self, guarded: GuardedModel, exchange: Exchange[Any], decoded: Decoded, found: Inspection, call: InferenceCall
    ) -> Outcome:
        """Decide on a request whose suspicious items are to be cleaned: forwarded so, or rejected where not stable."""
        call.remaining_s()
        images, tried = await guarded.inspector.repair(decoded.images, found, call.deadline, call.inspect_by)
        fields: dict[str, Any] = {"repair": guarded.policy.repair, "sha256_before": decoded.digest}
        if tried.enacted is Action.REJECT:
            return self.decided(guarded, tried, call, {**fields, "repair_stable": False})
        fields |= {"repair_stable": True, "sha256_after": tensor_digest(images)}
        await self.aside(exchange.size_bytes, partial(exchange.repair, images, decoded, guarded.spec.input))
        return self.decided(guarded, tried, call, fields)

    def unchecked(
        self,
        model: str,
        reason: str,
        call: InferenceCall,
        fields: Mapping[str, Any] = NOTHING,
        *,
        cause: Exception | None = None,
    ) -> Outcome:
        """Let a request of the model with this label pass uninspected: marked, counted and logged."""
        if reason in NEVER_BEGUN and call.place is not None:
            call.place.withdraw()
        self.records.count_unchecked(model, reason, call, fields, cause)
        return Outcome(model, UNCHECKED, (UNCHECKED,) * call.items, UNCHECKED, reason=reason)

    async def forward(
        self, outcome: Outcome, exchange: Exchange[Answer], call: InferenceCall, early: EarlyAnswer[Answer]
    ) -> Answer:
        answer = await early.get()
        if outcome.prediction is not None and outcome.guarded is not None:
            theirs = await self.named_by(answer, outcome.guarded.spec.output, exchange, call)
            outcome.guarded.comparison.compare(outcome.prediction, theirs)
        return answer

    async def named_by(
        self, answer: Answer, output: OutputSpec, exchange: Exchange[Answer], call: InferenceCall
    ) -> NDArray[np.int64] | None:
        """The class [item] that the model server's answer names; None where it does not show it."""
        read = partial(exchange.predicted, answer, output, call.items)
        return await self.aside(exchange.answer_bytes(answer), read)

    async def ask(self, exchange: Exchange[Answer], call: InferenceCall) -> Answer:
        """Ask the model server, within the call's deadline. Raises as `Exchange.ask`."""
        call.remaining_s()
        began = time.monotonic()
        with nullcontext() if call.span is None else call.span.upstream():
            answer = await exchange.ask()
        took = time.monotonic() - began
        self.metrics.stage("upstream", took)
        if call.guarded is not None:
            call.guarded.loaded.admission.forwarded(took)
        return answer

    def ended(self, call: InferenceCall) -> None:
        """Give back a call's place, and count what became of it."""
        self.passed_on(call)
        self.records.count_seconds(call)

    def passed_on(self, call: InferenceCall) -> None:
        """Give back the place of a message that has no one answer that a client waits for, and count it."""
        if call.place is not None:
            call.place.leave(time.monotonic(), inspected=False)
        self.records.count_call(call)
