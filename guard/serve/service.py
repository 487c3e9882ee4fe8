"""The service of ModelInfer: decode, inspect, and forward or refuse. Every other method is in `passage`.

Rule 1: what was inspected is what is forwarded: the bytes as they came. REPAIR alone re-encodes, and logs both hashes.
Rule 2: what could not be inspected passes only where mode or on_failure say so; then it is marked and counted.
Rule 3: a caller learns PASS or REJECT, never a score, an item or a detector.
Rule 4: errors become gRPC statuses in `outermost`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from guard.bundle import ModelSpec
from guard.config import ServeConfig
from guard.errors import (
    GuardError,
    Overloaded,
    Rejected,
    RequestError,
    Unchecked,
    UnknownModel,
    UpstreamDown,
)
from guard.policy import Action
from guard.serve import decode
from guard.serve.acceptor import TICKET
from guard.serve.admission import Admission, Place
from guard.serve.agreement import Agreement
from guard.serve.answer import prediction
from guard.serve.call import UNCHECKED, Call
from guard.serve.decode import Decoded
from guard.serve.door import Door
from guard.serve.gate import InferGate
from guard.serve.gatekeeper import Gate
from guard.serve.inspector import Inspection, Inspector, label
from guard.serve.listener import Methods
from guard.serve.log import Log, Seldom
from guard.serve.metrics import OTHER, Metrics
from guard.serve.readiness import Readiness
from guard.serve.upstream import Upstream, path
from guard.serve.wire.inference_pb2 import ModelInferRequest

READ_PATIENCE_S = 0.25  # for a message, before its call no longer counts among those that others wait for
REFUSAL_LOG_S = 0.05  # between two lines about refusals for one reason
DISAGREEMENT_LOG_S = 10.0  # at most one line about a stale bundle in this time


@dataclass(frozen=True)
class Outcome:
    """The result of inspecting one ModelInfer request, before it is forwarded."""

    model: str  # metric label
    action: str  # of the request: an Action, would_*, or unchecked
    items: tuple[str, ...]  # of each item
    forward: bytes  # what the upstream gets
    told: str
    prediction: NDArray[np.int64] | None = None  # ours, where the upstream sees the same input


@dataclass(kw_only=True)
class Service:
    """The handler of ModelInfer, the one method that carries tensors."""

    config: ServeConfig
    model: ModelSpec
    inspector: Inspector
    upstream: Upstream
    metrics: Metrics
    readiness: Readiness
    door: Door
    log: Log
    measured_disagreement: float = 0.0  # in training, by a served model in fewer bits: no sign that the bundle is stale

    def __post_init__(self) -> None:
        self.policy = self.inspector.policy
        self.allowed_models = frozenset(self.config.allow_models)
        self.seldom = Seldom(REFUSAL_LOG_S)
        self.seldom_disagreeing = Seldom(DISAGREEMENT_LOG_S)
        self.agreement = Agreement()
        self.admission = Admission()

    def methods(self) -> Methods:
        """The handler of ModelInfer; every other method is `Passage`'s."""
        return {path("ModelInfer"): self.door.unary(self.model_infer, begun=self.begun, ended=self.ended)}

    def gates(self) -> dict[str, Gate]:
        """The gates that are asked before a call is handled; none in mode `off`."""
        if self.policy.mode == "off":
            return {}
        return {path("ModelInfer"): InferGate(self.admission, self.config.timeout_s, self.ended)}

    def place(self, call: Call) -> Place:
        """Take a place for a call. Raises Overloaded."""
        now = time.monotonic()
        return self.admission.enter(now, call.deadline - now)

    def begun(self, call: Call) -> None:
        """Find the place that the gate gave a call, or take one where there is no gate. Raises Overloaded."""
        if self.policy.mode == "off":
            return
        given = TICKET.get()
        call.place = given if isinstance(given, Place) else self.place(call)
        call.patience = asyncio.get_running_loop().call_later(READ_PATIENCE_S, call.place.tear)

    async def model_infer(self, request: bytes, call: Call) -> bytes:
        if call.patience is not None:
            call.patience.cancel()
        outcome = await self.examine(request, call)
        if call.place is not None:
            call.place.leave(time.monotonic(), inspected=True)
        call.told, call.outcome = outcome.told, outcome
        self.count_items(outcome)
        if call.told == Action.REJECT:
            raise Rejected(
                "refused by the guard: the input looks adversarial, so it was not forwarded to the model; "
                f"if it is genuine, give the operator guard-id {call.id}"
            )
        return await self.forward(outcome, call)

    async def examine(self, request: bytes, call: Call) -> Outcome:
        """Inspect a request; where that fails, mode and on_failure decide whether it passes."""
        if self.policy.mode == "off":
            return self.unchecked(request, OTHER, "off", call)
        try:
            return await self.inspect(request, call)
        except Exception as error:
            ours = not isinstance(error, GuardError)
            if ours:  # a fault of ours must not become a way past the guard
                self.log.error("internal", id=call.id, cause=repr(error))
            reason = self.inspector.unchecked(error)
            if reason is not None:
                return self.unchecked(request, self.model.name, reason, call, cause=error)
            if ours:
                raise Unchecked("the guard failed while inspecting this request") from error
            raise

    def read(self, request: bytes) -> tuple[ModelInferRequest, Decoded | None]:
        """Parse the message, and decode its tensor unless the operator lets the model's requests pass."""
        parsed = decode.parse(request)
        if not self.guarded(parsed.message):
            return parsed.message, None
        return parsed.message, decode.decode(parsed, self.model.input, max_items=self.inspector.max_items)

    async def inspect(self, request: bytes, call: Call) -> Outcome:
        began = time.monotonic()
        message, decoded = await self.door.aside(len(request), partial(self.read, request))
        if decoded is None:
            return self.unchecked(request, message.model_name, "allowed_model", call)
        call.items = len(decoded.images)
        self.metrics.stage("decode", time.monotonic() - began)
        found = await self.inspector.inspect(decoded.images, call.deadline)
        self.metrics.inspected(found.readings.p_value, found.readings.detector_p)
        forward = request
        fields: dict[str, Any] = {}
        if found.enacted is Action.REPAIR:
            forward, fields = await self.repair(message, decoded, found, call)
        if found.verdict.request is not Action.PASS:
            self.log_verdict(message, call, found, fields)
        told = found.enacted if self.config.tell_flags or found.enacted is Action.REJECT else Action.PASS
        return Outcome(
            model=self.model.name,
            action=label(found.verdict.request, found.enacted),
            items=self.inspector.item_labels(found.verdict),
            forward=forward,
            told=told.value,
            prediction=found.readings.prediction if forward is request else None,
        )

    def guarded(self, message: ModelInferRequest) -> bool:
        """Whether the bundle guards the named model; False where the operator lets it pass.

        Raises:
            UnknownModel: the model is neither guarded nor let pass.
        """
        name = message.model_name
        if name == self.model.name:
            self.check_version(message.model_version)
            return True
        if name in self.allowed_models:
            return False
        raise UnknownModel(f"no bundle guards model {name[:80]!r}; this guard inspects {self.model.name!r}")

    def check_version(self, named: str) -> None:
        """Check that a request for this version ("": the server's choice) reaches the weights that the bundle is for.

        Raises:
            UnknownModel: it may reach other weights.
            Unchecked: the model server has not said yet which versions it has.
        """
        ours, model, served = self.model.version, self.model.name, self.upstream.versions
        asked = f"version {named[:20]!r}" if named else "no version"
        if ours:
            if named == ours or (not named and served in (None, (), (ours,))):
                return
            several = "" if named else ", of which the model server has several"
            raise UnknownModel(
                f"this guard inspects version {ours} of model {model!r}; the request names {asked}{several}"
            )
        if served is None:
            if not named:
                return
            raise Unchecked(f"the model server has not said yet which versions of {model!r} it has; try again shortly")
        if len(served) > 1:
            raise UnknownModel(
                f"the model server has versions {', '.join(served)} of model {model!r}, and this guard's bundle is for "
                f"no one in particular; the request names {asked}, and every version is refused until the bundle names "
                "its own"
            )
        if named and served and named not in served:
            raise UnknownModel(
                f"the model server has version {served[0]} of model {model!r}, which this guard inspects; "
                f"the request names {asked}"
            )

    async def repair(
        self, message: ModelInferRequest, decoded: Decoded, found: Inspection, call: Call
    ) -> tuple[bytes, dict[str, Any]]:
        """Return the request with its suspicious items cleaned, and what to log."""
        call.remaining_s()
        images = await self.inspector.repair(decoded.images, found.verdict, call.deadline)
        hashes = {
            "repair": self.policy.repair,
            "sha256_before": decoded.digest,
            "sha256_after": decode.tensor_digest(images),
        }
        return decode.encode(message, images, self.model.input, decoded.form), hashes

    def unchecked(
        self, request: bytes, model: str, reason: str, call: Call, *, cause: Exception | None = None
    ) -> Outcome:
        """Let a request pass uninspected: marked, counted and logged."""
        self.metrics.unchecked.labels(self.metrics.model(model), reason).inc()
        if reason not in ("off", "allowed_model"):
            why = {} if cause is None else {"cause": str(cause), "because": because(cause)}
            self.log.warning("unchecked", id=call.id, model=self.metrics.model(model), reason=reason, **why)
        return Outcome(self.metrics.model(model), UNCHECKED, (UNCHECKED,) * call.items, request, UNCHECKED)

    async def forward(self, outcome: Outcome, call: Call) -> bytes:
        began = time.monotonic()
        answer = await self.upstream.unary(path("ModelInfer"), outcome.forward, call.upward, call.remaining_s())
        took = time.monotonic() - began
        self.metrics.stage("upstream", took)
        self.admission.forwarded(took)
        if outcome.prediction is not None:
            body = answer.body
            theirs = await self.door.aside(len(body), partial(self.predicted, body, call.items))
            self.compare(outcome.prediction, theirs)
        return await call.deliver(answer)

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
        model = outcome.model if outcome is not None else self.model.name if call.items else OTHER
        self.metrics.ended(model, action, time.monotonic() - call.began)
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
        if not isinstance(error, (Unchecked, Overloaded)):
            self.log.debug("refused", id=call.id, reason=reason, cause=str(error), because=because(error))
        elif (held_back := self.seldom.due(reason, time.monotonic())) is not None:
            why = {"cause": str(error), "because": because(error)}
            self.log.warning("refused", id=call.id, reason=reason, **why, held_back=held_back)

    def log_verdict(self, message: ModelInferRequest, call: Call, found: Inspection, fields: dict[str, Any]) -> None:
        readings, worst = found.readings, found.worst
        names = self.inspector.calibration.detectors
        detectors = zip(names, readings.detector_p[worst].tolist(), strict=True)
        self.log.info(
            label(found.verdict.request, found.enacted),
            id=call.id,
            request_id=message.id[:80],
            model=self.model.name,
            items=len(found.verdict.items),
            suspicious=[index for index, item in enumerate(found.verdict.items) if item is not Action.PASS][:64],
            worst_item=worst,
            p_value=float(readings.p_value[worst]),
            prediction=int(readings.prediction[worst]),
            detectors={name: None if np.isnan(p) else p for name, p in detectors},
            **fields,
        )

    def predicted(self, answer: bytes, items: int) -> NDArray[np.int64] | None:
        """The classes that the upstream's answer names; None where it does not show them."""
        with suppress(ValueError, OverflowError):  # whatever the upstream sent, it goes to the client
            return prediction(answer, self.model.output, items)
        return None

    def compare(self, own: NDArray[np.int64], theirs: NDArray[np.int64] | None) -> None:
        """Count and log the items on which bundle and upstream disagree, so that a stale bundle is noticed."""
        if theirs is None:
            return
        different = self.metrics.predictions(self.model.name, own, theirs)
        self.note_agreement(different, len(own))
        if different and self.seldom_disagreeing.due("disagreement", time.monotonic()) is not None:
            self.log.warning(
                "disagreement",
                model=self.model.name,
                items=len(own),
                different=different,
                fingerprint=self.model.fingerprint,
            )

    def note_agreement(self, different: int, items: int) -> None:
        """Update the share of disagreement, which readiness follows where the operator has set a limit."""
        share, most = self.agreement.note(different, items), self.config.max_disagreement
        if share is None:
            return
        self.metrics.disagreement.set(share)
        if most is None:
            return
        stale = share > most + self.measured_disagreement
        if stale is (self.readiness.part("bundle") is None):
            reason = f"bundle and model server name different classes for {share:.0%} of the last items"
            self.readiness.say("bundle", f"{reason}; is the bundle for this model?" if stale else None)


def because(error: BaseException | None) -> str | None:
    return repr(error.__cause__) if error is not None and error.__cause__ else None


def failure_code(error: Exception | None) -> str:
    """The gRPC status with which the upstream failed."""
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else UpstreamDown.status
