"""ModelInfer: decode, have it read, judge, and forward or refuse. Every other method is in `passage`.

Rule 1: what was inspected is what is forwarded: the bytes as they came. REPAIR alone re-encodes, and logs both hashes.
Rule 2: what could not be inspected passes only where mode or on_failure say so; then it is marked and counted.
Rule 3: a caller learns PASS or REJECT, never a score, an item or a detector.
Rule 4: errors become gRPC statuses in `Call.answering`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from guard.bundle import ModelSpec
from guard.calibration import Calibration, smallest_rate
from guard.config import ServeConfig
from guard.errors import (
    Expired,
    GuardError,
    MalformedRequest,
    Overloaded,
    Rejected,
    RequestError,
    Unchecked,
    Uninspectable,
    UnknownModel,
)
from guard.policy import Action, Policy, Verdict, decide
from guard.runtime import Readings
from guard.serve import decode
from guard.serve.batcher import Batcher
from guard.serve.call import UNCHECKED, Call
from guard.serve.decode import Decoded
from guard.serve.engine import Engine
from guard.serve.log import Log
from guard.serve.metrics import OTHER, Metrics
from guard.serve.upstream import Upstream, path
from guard.serve.wire.inference_pb2 import ModelInferRequest

DISAGREEMENT_LOG_S = 10.0  # at most one line about a stale bundle in this time


@dataclass(frozen=True)
class Outcome:
    """What became of one ModelInfer request, before it is forwarded."""

    model: str  # metric label
    action: str  # of the request: an Action, would_*, or unchecked
    items: tuple[str, ...]  # of each item
    forward: bytes  # what goes up
    told: str
    prediction: NDArray[np.int64] | None = None  # ours, where the upstream sees the same input


@dataclass(kw_only=True)
class Service(grpc.GenericRpcHandler):
    """The one method that carries tensors."""

    config: ServeConfig
    policy: Policy
    model: ModelSpec
    calibration: Calibration
    batcher: Batcher
    engine: Engine
    upstream: Upstream
    metrics: Metrics
    log: Log

    def __post_init__(self) -> None:
        self.allowed_models = frozenset(self.config.allow_models)
        self.disagreement_logged = -DISAGREEMENT_LOG_S

    def service(self, details: Any) -> Any:
        """The handler of ModelInfer; None leaves every other method to `Passage`."""
        return grpc.unary_unary_rpc_method_handler(self.model_infer) if details.method == path("ModelInfer") else None

    async def model_infer(self, request: bytes, context: Any) -> bytes:
        call = Call.of(context, timeout_s=self.config.timeout_s)
        began = time.monotonic()
        async with call.answering(self.log):
            try:
                outcome = await self.examine(request, call)
                call.told = outcome.told
                self.account(outcome)
                if call.told == Action.REJECT:
                    raise Rejected(
                        "refused by the guard: the input looks adversarial, so it was not forwarded to the model; "
                        f"if it is genuine, give the operator guard-id {call.id}"
                    )
                return await self.forward(outcome, call)
            except RequestError as error:
                self.note_refusal(error, call)
                raise
            except asyncio.CancelledError:
                self.note_end(call, "cancelled")
                raise
            finally:
                self.metrics.request_seconds.observe(time.monotonic() - began)
        raise AssertionError("answering() has aborted the call")

    async def examine(self, request: bytes, call: Call) -> Outcome:
        """Inspect, and turn "could not" into what mode and on_failure say."""
        if self.policy.mode == "off":
            return self.unchecked(request, OTHER, "off", call)
        shadow = self.policy.mode == "shadow"
        try:
            return await self.inspect(request, call)
        except (MalformedRequest, Uninspectable) as error:
            if not shadow:
                raise
            return self.unchecked(request, self.model.name, error.reason.lower(), call, cause=error)
        except (Unchecked, Overloaded) as error:
            if not shadow and self.policy.on_failure == "closed":
                raise
            return self.unchecked(request, self.model.name, error.reason.lower(), call, cause=error)
        except (GuardError, asyncio.CancelledError):
            raise
        except Exception as error:  # a fault of ours must not become a way past us
            self.log.error("internal", id=call.id, cause=repr(error))
            if not shadow and self.policy.on_failure == "closed":
                raise Unchecked("the guard failed while inspecting this request") from error
            return self.unchecked(request, self.model.name, "internal", call, cause=error)

    async def inspect(self, request: bytes, call: Call) -> Outcome:
        began = time.monotonic()
        message = decode.parse(request)
        if not self.guarded(message):
            return self.unchecked(request, message.model_name, "allowed_model", call)
        decoded = decode.decode(message, self.model.input)
        call.items = len(decoded.images)
        self.check_judgeable(call.items)
        self.metrics.stage("decode", time.monotonic() - began)
        readings = await self.batcher.submit(decoded.images, call.deadline)
        self.metrics.inspected(readings.p_value, readings.detector_p)
        verdict = self.judge(readings)
        enacted = self.policy.enact(verdict.request)
        forward = request
        fields: dict[str, Any] = {}
        if enacted is Action.REPAIR:
            forward, fields = await self.repair(message, decoded, verdict, call)
        if verdict.request is not Action.PASS:
            self.log_verdict(message, call, verdict, enacted, readings, fields)
        return Outcome(
            model=self.model.name,
            action=label(verdict.request, enacted),
            items=self.item_labels(verdict),
            forward=forward,
            told=enacted.value if self.config.tell_flags or enacted is Action.REJECT else Action.PASS.value,
            prediction=readings.prediction if forward is request else None,
        )

    def guarded(self, message: ModelInferRequest) -> bool:
        """Whether the bundle guards the named model; False where the operator lets it pass.

        Raises:
            UnknownModel: neither.
        """
        name, version = message.model_name, message.model_version
        if name == self.model.name:
            ours = self.model.version
            if not ours or version == ours or (not version and self.upstream.versions in ((), (ours,))):
                return True
            found = f"version {version[:20]!r}" if version else "no version, of which the model server has several"
            raise UnknownModel(f"this guard inspects version {ours} of model {name!r}; the request names {found}")
        if name in self.allowed_models:
            return False
        raise UnknownModel(f"no bundle guards model {name[:80]!r}; this guard inspects {self.model.name!r}")

    def check_judgeable(self, items: int) -> None:
        """Where a request is judged as a whole, one too large could never be rejected. Raises Uninspectable."""
        if self.policy.rows == "request" and smallest_rate(self.calibration.items // items) > self.policy.reject_rate:
            most = self.calibration.items // (math.ceil(1 / self.policy.reject_rate) - 1)
            raise Uninspectable(
                f"a request of {items} items cannot be judged as a whole at the promised rate; send at most {most}"
            )

    def judge(self, readings: Readings) -> Verdict:
        whole = self.request_p_value(readings) if self.policy.rows == "request" else None
        return decide(readings.p_value.tolist(), self.policy, request_p_value=whole)

    def request_p_value(self, readings: Readings) -> float:
        """p-value of the riskiest item among requests of as many items."""
        return self.calibration.request_p_value(float(readings.risk.max()), len(readings.risk))

    async def repair(
        self, message: ModelInferRequest, decoded: Decoded, verdict: Verdict, call: Call
    ) -> tuple[bytes, dict[str, Any]]:
        """The request with its suspicious items cleaned (all, where it is judged as a whole), and what to log."""
        name = self.policy.repair or ""
        whole = self.policy.rows == "request"
        chosen = np.asarray([whole or item is Action.REPAIR for item in verdict.items])
        images = decoded.images.copy()
        try:
            async with asyncio.timeout(call.remaining_s()):
                images[chosen] = await self.engine.repair(decoded.images[chosen], name)
        except TimeoutError as error:
            raise Expired("the deadline passed while the request was repaired; nothing was forwarded") from error
        hashes = {"repair": name, "sha256_before": decoded.digest, "sha256_after": decode.tensor_digest(images)}
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
        self.metrics.stage("upstream", time.monotonic() - began)
        if outcome.prediction is not None:
            self.compare(outcome.prediction, answer.body)
        return await call.deliver(answer)

    # what is remembered of it

    def item_labels(self, verdict: Verdict) -> tuple[str, ...]:
        """Each item's own verdict; where the request is judged as a whole, the request's."""
        items = (verdict.request,) * len(verdict.items) if self.policy.rows == "request" else verdict.items
        return tuple(label(item, self.policy.enact(item)) for item in items)

    def account(self, outcome: Outcome) -> None:
        self.metrics.requests.labels(outcome.model, outcome.action).inc()
        for action, count in Counter(outcome.items).items():
            self.metrics.items.labels(outcome.model, action).inc(count)

    def note_refusal(self, error: RequestError, call: Call) -> None:
        """Count a request that got no verdict; one that did is in the books already."""
        if call.told is not None:
            return
        self.note_end(call, "refused")
        self.metrics.refused.labels(error.reason.lower()).inc()
        write = self.log.warning if isinstance(error, (Unchecked, Overloaded)) else self.log.debug
        write("refused", id=call.id, reason=error.reason, cause=str(error), because=because(error))

    def note_end(self, call: Call, action: str) -> None:
        """Count a call that ended without a verdict."""
        if call.told is None:
            self.metrics.requests.labels(self.model.name if call.items else OTHER, action).inc()
            self.metrics.items.labels(self.model.name, action).inc(call.items)

    def log_verdict(
        self,
        message: ModelInferRequest,
        call: Call,
        verdict: Verdict,
        enacted: Action,
        readings: Readings,
        fields: dict[str, Any],
    ) -> None:
        worst = int(readings.p_value.argmin())
        detectors = zip(self.calibration.detectors, readings.detector_p[worst].tolist(), strict=True)
        self.log.info(
            label(verdict.request, enacted),
            id=call.id,
            request_id=message.id[:80],
            model=self.model.name,
            items=len(verdict.items),
            suspicious=[index for index, item in enumerate(verdict.items) if item is not Action.PASS][:64],
            worst_item=worst,
            p_value=float(readings.p_value[worst]),
            prediction=int(readings.prediction[worst]),
            detectors={name: None if np.isnan(p) else p for name, p in detectors},
            **fields,
        )

    def compare(self, own: NDArray[np.int64], answer: bytes) -> None:
        """Count where bundle and upstream disagree: a stale bundle is an incident, not a mystery."""
        theirs = None
        with suppress(ValueError, OverflowError):  # whatever the upstream sent, it is the client's
            theirs = decode.prediction(answer, self.model.output, len(own))
        if theirs is None:
            return
        different = self.metrics.predictions(self.model.name, own, theirs)
        now = time.monotonic()
        if different and now - self.disagreement_logged >= DISAGREEMENT_LOG_S:
            self.disagreement_logged = now
            self.log.warning(
                "disagreement",
                model=self.model.name,
                items=len(own),
                different=different,
                fingerprint=self.model.fingerprint,
            )


def label(judged: Action, enacted: Action) -> str:
    """The action for metrics and logs: what happened, or what would have happened in `enforce`."""
    return judged.value if judged is enacted else f"would_{judged.value}"


def because(error: BaseException) -> str | None:
    return repr(error.__cause__) if error.__cause__ else None
