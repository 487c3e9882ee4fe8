"""The service of ModelInfer: decode, inspect, and forward or refuse. Every other method is in `passage`.

Where `forward` is "before", a request that is not rejected already is forwarded, the model's answer is held and read,
and the verdict on both decides whether it is delivered or discarded.

Rule 1: what was inspected is what is forwarded: the bytes as they came. REPAIR alone re-encodes, and logs both hashes.
Rule 2: what could not be inspected passes only where mode or on_failure say so; then it is marked and counted.
Rule 3: a caller learns PASS or REJECT, never a score, an item or a detector.
Rule 4: errors become gRPC statuses in `outermost`, and nowhere else.
Rule 5: an answer that is held is delivered after a verdict only; one that cannot be compared is a failed inspection.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from guard.answer_evidence import AnswerCalibration
from guard.errors import (
    BreakerOpen,
    GuardError,
    Overloaded,
    Rejected,
    RequestError,
    Unchecked,
    UpstreamDown,
)
from guard.judge import Inspection
from guard.manifest import OutputSpec
from guard.policy import Action
from guard.serve.admission import Admission
from guard.serve.breaker import BreakerEvent
from guard.serve.failure_table import OF_GUARD
from guard.serve.grpc import decode
from guard.serve.grpc.acceptor import TICKET
from guard.serve.grpc.answer import prediction
from guard.serve.grpc.call import UNCHECKED, Call
from guard.serve.grpc.decode import Decoded
from guard.serve.grpc.door import Door
from guard.serve.grpc.gate import Admitted, InferGate, TooLate, Uncounted
from guard.serve.grpc.gatekeeper import Gate
from guard.serve.grpc.listener import Methods
from guard.serve.grpc.upstream import Answer, Upstream, path
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from guard.serve.guarded_model import GuardedModel
from guard.serve.inspector import label
from guard.serve.log import Level, Log, Seldom
from guard.serve.metrics import OTHER, Metrics
from guard.serve.models import Models, ModelTable
from guard.serve.sampling import NOT_SAMPLED

READ_PATIENCE_S = 0.25  # for a message, before its call no longer counts among those that others wait for
REFUSAL_LOG_S = 0.05  # between two lines about refusals for one reason
NO_INSPECTION = (NOT_SAMPLED, BreakerOpen().reason.lower())  # reasons of what passes without waiting for one
NOTHING: Mapping[str, Any] = {}
Found = TypeVar("Found")


@dataclass(frozen=True)
class Outcome:
    """The result of inspecting one ModelInfer request, before it is forwarded."""

    model: str  # metric label
    action: str  # of the request: an Action, would_*, or unchecked
    items: tuple[str, ...]  # of each item
    forward: bytes  # what the upstream gets
    told: str
    guarded: GuardedModel | None = None  # where it was inspected
    prediction: NDArray[np.int64] | None = None  # ours, where the upstream sees the same input
    why_unchecked: str | None = None  # the reason for which it passed uninspected

    @property
    def answered(self) -> bool:
        """Whether the model has seen, or may have seen, the request before the verdict."""
        return self.guarded is not None and self.guarded.inspector.answers is not None


@dataclass(frozen=True, eq=False)
class Undecided:
    """A request that the programs do not reject, and whose verdict waits for the model's answer."""

    request: bytes
    guarded: GuardedModel
    found: Inspection
    answers: AnswerCalibration


@dataclass(kw_only=True)
class Service:
    """The handler of ModelInfer, the one method that carries tensors."""

    models: Models
    upstream: Upstream
    metrics: Metrics
    door: Door
    log: Log

    def __post_init__(self) -> None:
        self.seldom = Seldom(REFUSAL_LOG_S)
        self.admission = Admission()
        self.gate = InferGate(self.admission, 0.0, self.ended)
        self.models.listeners.append(self.follow)
        self.follow(self.models.table)

    def follow(self, table: ModelTable) -> None:
        """Set what is asked before a request's model is known: by all models together."""
        self.off = table.strictest_mode == "off"
        self.budget_s = table.inspect_timeout_s
        self.passes_late = table.passes_late
        self.gate.budget_s, self.gate.passes_late, self.gate.is_open = self.budget_s, self.passes_late, self.off

        for loaded in table.loaded:
            if self.breaker_changed not in loaded.breaker.listeners:
                loaded.breaker.listeners.append(self.breaker_changed)

    def breaker_changed(self, event: BreakerEvent) -> None:
        """Forget how long inspections took, which no longer holds."""
        if event != "breaker still open":
            self.admission.forget()

    def methods(self) -> Methods:
        """The handler of ModelInfer; every other method is `Passage`'s."""
        return {path("ModelInfer"): self.door.unary(self.model_infer, begun=self.begun, ended=self.ended)}

    def gates(self) -> dict[str, Gate]:
        """The gates that are asked before a call is handled; none where the guard starts in mode `off`."""
        return {} if self.off else {path("ModelInfer"): self.gate}

    def begun(self, call: Call) -> None:
        """Find the place that the gate gave a call, or take one where there is no gate. Raises Overloaded."""
        now, given = time.monotonic(), TICKET.get()
        call.budget_s, call.inspect_by = self.budget_s, now + self.budget_s
        if self.off or isinstance(given, Uncounted):
            return
        if isinstance(given, TooLate):
            call.inspect_by = -math.inf
            return
        if isinstance(given, Admitted):
            call.place, call.inspect_by, call.budget_s = given.place, given.inspect_by, given.budget_s
        else:
            self.admit(call)
        if call.place is not None:
            call.patience = asyncio.get_running_loop().call_later(READ_PATIENCE_S, call.place.tear)

    def admit(self, call: Call) -> None:
        """Begin the time for a call's inspection, and give it a place where no gate did; none where it passes late.

        Raises:
            Overloaded: there is none, and what cannot be inspected does not pass.
        """
        now = time.monotonic()
        call.budget_s, call.inspect_by = self.budget_s, now + self.budget_s
        try:
            call.place = self.admission.enter(now, call.deadline - now, self.budget_s)
        except Overloaded:
            if not self.passes_late:
                raise
            call.inspect_by = -math.inf

    async def model_infer(self, request: bytes, call: Call) -> bytes:
        if call.patience is not None:
            call.patience.cancel()
        call.inspect_by += time.monotonic() - call.began  # the message's way here is no part of the guard's time
        outcome = await self.examine(request, call)
        self.leave(call, outcome)
        if isinstance(outcome, Undecided):
            return await self.hold(outcome, call)
        self.settle(outcome, call)
        return await self.forward(outcome, call)

    async def inspect_alone(self, call: Call, message: Callable[[], bytes]) -> None:
        """Inspect the request that `message` gives or refuses, for a door that does not forward it.

        Raises:
            GuardError: it may not pass; where it may, the verdict is in the call.
        """
        if not self.off:
            self.admit(call)
        outcome = await self.examine_given(message, call)
        self.leave(call, outcome)
        self.settle(outcome, call)

    async def examine_given(self, message: Callable[[], bytes], call: Call) -> Outcome:
        """Inspect the request that `message` gives; where it gives none, mode and on_failure decide likewise."""

        async def inspecting() -> Outcome | Undecided:
            return await self.inspect(message(), call)

        if self.off:
            return self.unchecked(b"", OTHER, "off", call)
        found = await self.checked(inspecting(), b"", call)
        if isinstance(found, Undecided):
            raise Unchecked("this door does not hold the model's answer, for which the verdict waits")
        return found

    def leave(self, call: Call, outcome: Outcome | Undecided) -> None:
        """Give back the place of a call that is inspected; how long that takes is not told by those that were not."""
        if call.place is not None:
            quick = isinstance(outcome, Outcome) and outcome.why_unchecked in NO_INSPECTION
            call.place.leave(time.monotonic(), inspected=not quick)

    def settle(self, outcome: Outcome, call: Call) -> None:
        """Record and count what was decided on a request. Raises Rejected where that is so."""
        call.told, call.outcome = outcome.told, outcome
        self.count_items(outcome)
        if call.told == Action.REJECT:
            kept_away = "" if outcome.answered else ", so it was not forwarded to the model"
            raise Rejected(
                f"refused by the guard: the input looks adversarial{kept_away}; if it is genuine, give the operator "
                f"guard-id {call.id}"
            )

    async def examine(self, request: bytes, call: Call) -> Outcome | Undecided:
        """Inspect a request; where that fails, mode and on_failure decide whether it passes."""
        if self.off:
            return self.unchecked(request, OTHER, "off", call)
        return await self.checked(self.inspect(request, call), request, call)

    async def checked(self, inspecting: Awaitable[Found], request: bytes, call: Call) -> Found | Outcome:
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
                label = OTHER if guarded is None else guarded.label
                return self.unchecked(request, label, reason, call, cause=error)
            if ours:
                raise Unchecked("the guard failed while inspecting this request") from error
            raise

    def read(self, request: bytes, call: Call) -> tuple[ModelInferRequest, GuardedModel | None, Decoded | None]:
        """Parse the message, find its model, and decode its tensor unless that is not inspected.

        Raises:
            MalformedRequest, Uninspectable: as `decode`.
            UnknownModel, Unchecked: as `Models.find`.
        """
        parsed = decode.parse(request)
        call.message_id = parsed.message.id
        guarded = call.guarded = self.models.find(parsed.message.model_name, parsed.message.model_version)
        if guarded is None or guarded.policy.mode == "off":
            return parsed.message, guarded, None
        spec, max_items = guarded.spec.input, guarded.inspector.max_items
        return parsed.message, guarded, decode.decode(parsed, spec, max_items=max_items)

    async def inspect(self, request: bytes, call: Call) -> Outcome | Undecided:
        began = time.monotonic()
        message, guarded, decoded = await self.door.aside(len(request), partial(self.read, request, call))
        if guarded is None:
            return self.unchecked(request, self.metrics.model(message.model_name), "allowed_model", call)
        if decoded is None:
            return self.unchecked(request, guarded.label, "off", call)
        call.items = len(decoded.images)
        call.inspect_by += guarded.config.inspect_timeout_s - call.budget_s
        self.metrics.stage("decode", time.monotonic() - began)
        if not guarded.sampling.takes(call.id):
            return self.unchecked(request, guarded.label, NOT_SAMPLED, call, guarded.sampling.fields(call.id))
        inspector = guarded.inspector
        found = await inspector.inspect(decoded.images, call.deadline, call.inspect_by)
        if (answers := inspector.answers) is not None:
            early = inspector.before_answer(found, answers)
            if early.enacted is not Action.REJECT:
                return Undecided(request, guarded, found, answers)
            self.metrics.held_answers.labels("not_asked").inc()
            return self.decided(guarded, request, early, call, {"model_asked": False})
        if found.enacted is Action.REPAIR:
            return await self.repair(guarded, request, message, decoded, found, call)
        return self.decided(guarded, request, found, call)

    def decided(
        self,
        guarded: GuardedModel,
        forward: bytes,
        found: Inspection,
        call: Call,
        fields: Mapping[str, Any] = NOTHING,
    ) -> Outcome:
        """The outcome of an inspection that is over: counted, and logged with further `fields`."""
        readings = found.readings
        self.metrics.inspected(guarded.label, found.detectors, readings.p_value, readings.detector_p)
        if found.verdict.request is not Action.PASS:
            self.log_verdict(guarded.label, call, found, {**fields, **guarded.sampling.fields(call.id)})
        told = found.enacted if guarded.config.tell_flags or found.enacted is Action.REJECT else Action.PASS
        return Outcome(
            model=guarded.label,
            action=label(found.verdict.request, found.enacted),
            items=guarded.inspector.item_labels(found.verdict),
            forward=forward,
            told=told.value,
            guarded=guarded,
            prediction=readings.prediction if found.enacted is not Action.REPAIR else None,
        )

    async def hold(self, undecided: Undecided, call: Call) -> bytes:
        """Ask the model, hold its answer until the verdict on both, and deliver it then, or discard it."""
        request = undecided.request
        answer = await self.ask(request, call)
        self.settle(await self.checked(self.weigh(undecided, answer, call), request, call), call)
        return await call.deliver(answer)

    async def weigh(self, undecided: Undecided, answer: Answer, call: Call) -> Outcome:
        """Decide on a request by the model's answer to it. Raises Unchecked where that cannot be compared."""
        body, found, guarded = answer.body, undecided.found, undecided.guarded
        output = guarded.spec.output
        named = await self.door.aside(len(body), partial(predicted, body, output, call.items))
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
        return self.decided(guarded, undecided.request, judged, call, {"model_asked": True})

    async def repair(
        self,
        guarded: GuardedModel,
        request: bytes,
        message: ModelInferRequest,
        decoded: Decoded,
        found: Inspection,
        call: Call,
    ) -> Outcome:
        """Decide on a request whose suspicious items are to be cleaned: forwarded so, or rejected where not stable."""
        call.remaining_s()
        images, tried = await guarded.inspector.repair(decoded.images, found, call.deadline, call.inspect_by)
        fields: dict[str, Any] = {"repair": guarded.policy.repair, "sha256_before": decoded.digest}
        if tried.enacted is Action.REJECT:
            return self.decided(guarded, request, tried, call, {**fields, "repair_stable": False})
        fields |= {"repair_stable": True, "sha256_after": decode.tensor_digest(images)}
        forward = decode.encode(message, images, guarded.spec.input, decoded.form)
        return self.decided(guarded, forward, tried, call, fields)

    def unchecked(
        self,
        request: bytes,
        model: str,
        reason: str,
        call: Call,
        fields: Mapping[str, Any] = NOTHING,
        *,
        cause: Exception | None = None,
    ) -> Outcome:
        """Let a request of the model with this label pass uninspected: marked, counted and logged."""
        self.metrics.unchecked.labels(model, reason).inc()
        if reason not in ("off", "allowed_model"):
            why = {} if cause is None else {"cause": str(cause), "because": because(cause)}
            level: Level = "debug" if reason == NOT_SAMPLED else "warning"
            self.log.write(level, "unchecked", {**call.names, "model": model, "reason": reason, **why, **fields})
        return Outcome(model, UNCHECKED, (UNCHECKED,) * call.items, request, UNCHECKED, why_unchecked=reason)

    async def forward(self, outcome: Outcome, call: Call) -> bytes:
        answer = await self.ask(outcome.forward, call)
        if outcome.prediction is not None and outcome.guarded is not None:
            body, output = answer.body, outcome.guarded.spec.output
            theirs = await self.door.aside(len(body), partial(predicted, body, output, call.items))
            outcome.guarded.comparison.compare(outcome.prediction, theirs)
        return await call.deliver(answer)

    async def ask(self, request: bytes, call: Call) -> Answer:
        """Ask the model server, within the call's deadline. Raises as `Upstream.unary`."""
        began = time.monotonic()
        answer = await self.upstream.unary(path("ModelInfer"), request, call.upward, call.forward_timeout_s())
        took = time.monotonic() - began
        self.metrics.stage("upstream", took)
        self.admission.forwarded(took)
        return answer

    # metrics and log

    def count_items(self, outcome: Outcome) -> None:
        for action, count in Counter(outcome.items).items():
            self.metrics.items.labels(outcome.model, action).inc(count)

    def ended(self, call: Call) -> None:
        """Count a call that is over, once, by what became of it: a verdict counts only if it was carried out."""
        if call.place is not None:
            call.place.leave(time.monotonic(), inspected=False)
        outcome: Outcome | None = call.outcome
        decided = outcome is not None and (call.end == "answered" or isinstance(call.error, Rejected))
        action = outcome.action if outcome is not None and decided else call.end
        known: GuardedModel | None = call.guarded
        model = outcome.model if outcome is not None else known.label if known is not None and call.items else OTHER
        self.metrics.ended(model, action, call.end, time.monotonic() - call.began)
        self.metrics.handled("ModelInfer", call.code)
        if outcome is None and call.items:
            self.metrics.items.labels(model, call.end).inc(call.items)
        if action == "refused":
            self.note_refusal(call)
        elif action == "failed":
            self.metrics.upstream_failures.labels(failure_code(call.error)).inc()

    def note_refusal(self, call: Call) -> None:
        error = call.error
        reason = error.reason if isinstance(error, RequestError) else "INTERNAL"
        self.metrics.refused.labels(reason.lower()).inc()
        if not isinstance(error, OF_GUARD):
            self.log.debug("refused", **call.names, reason=reason, cause=str(error), because=because(error))
        elif (held_back := self.seldom.due(reason, time.monotonic())) is not None:
            why = {"cause": str(error), "because": because(error)}
            self.log.warning("refused", **call.names, reason=reason, **why, held_back=held_back)

    def log_verdict(self, model: str, call: Call, found: Inspection, fields: Mapping[str, Any]) -> None:
        readings, worst = found.readings, found.worst
        detectors = zip(found.detectors, readings.detector_p[worst].tolist(), strict=True)
        self.log.info(
            label(found.verdict.request, found.enacted),
            **call.names,
            model=model,
            items=len(found.verdict.items),
            suspicious=[index for index, item in enumerate(found.verdict.items) if item is not Action.PASS][:64],
            worst_item=worst,
            p_value=float(readings.p_value[worst]),
            prediction=int(readings.prediction[worst]),
            detectors={name: None if np.isnan(p) else p for name, p in detectors},
            **fields,
        )


def predicted(answer: bytes, output: OutputSpec, items: int) -> NDArray[np.int64] | None:
    """The classes that the upstream's answer names; None where it does not show them."""
    with suppress(ValueError, OverflowError):  # whatever the upstream sent, it goes to the client
        return prediction(answer, output, items)
    return None


def because(error: BaseException | None) -> str | None:
    return repr(error.__cause__) if error is not None and error.__cause__ else None


def failure_code(error: Exception | None) -> str:
    """The gRPC status with which the upstream failed."""
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else UpstreamDown.status
