"""The inspector: images become an inspection. It knows no protocol; the services of every listener call it.

Rule 1: what could not be inspected passes only where mode or on_failure say so.
Rule 2: nothing here decodes, forwards, counts or logs; the caller does, and answers its own client.
Rule 3: where the model's answer counts, a verdict before it rejects only what is rejected whatever the model answers.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.answer_evidence import AnswerCalibration
from guard.calibration import Calibration
from guard.cascade import Readings, jitter
from guard.errors import Expired, GuardError, InspectionTimeout, Unchecked
from guard.judge import Inspection, Judge
from guard.policy import Action, Policy, Verdict, repaired
from guard.serve.batcher import Batcher
from guard.serve.breaker import Breaker
from guard.serve.engine import Engine
from guard.serve.failure_table import excuse

MAX_LOGGED_ITEMS = 64
TOO_SLOW = "the inspection was not over within inspect_timeout_s"


@dataclass(frozen=True, kw_only=True)
class Inspector:
    """The inspector of images: it has them read, judges them, and repairs them where the verdict says so."""

    policy: Policy
    calibration: Calibration
    batcher: Batcher
    engine: Engine
    breaker: Breaker
    answers: AnswerCalibration | None = None  # of the model, where verdicts wait for these

    @property
    def judge(self) -> Judge:
        """The judge of this inspector's policy and calibration."""
        return Judge(self.policy, self.calibration)

    @property
    def max_items(self) -> int:
        """The most items that one request may hold."""
        return self.batcher.max_queue_items

    async def inspect(self, images: NDArray[Any], deadline: float, inspect_by: float) -> Inspection:
        """Inspect wire inputs [item, ...]: readings and verdict; both moments are those of time.monotonic().

        Raises:
            Expired: the client's `deadline` passed first.
            InspectionTimeout: `inspect_by` passed first, after which the inspection counts as failed.
            Uninspectable: the request cannot be judged as a whole, as the policy wants it.
            BreakerOpen: the engine is broken, and nothing waits for it.
            Overloaded, Unchecked, MalformedRequest: as `Batcher.submit`.
        """
        self.check(len(images))
        return self.judged(await self.read(images, deadline, inspect_by), images)

    def judged(self, readings: Readings, images: NDArray[Any]) -> Inspection:
        """The verdict on images [item, ...] by their readings."""
        return self.judge.judged(readings, self.calibration, jitter(images) if self.answers else np.zeros(len(images)))

    def check(self, items: int) -> None:
        """Raise Uninspectable or BreakerOpen where a request of so many items cannot be inspected, as things are."""
        self.judge.check_judgeable(items)
        self.breaker.check()

    async def read(self, images: NDArray[Any], deadline: float, inspect_by: float) -> Readings:
        """Have images [item, ...] read, and count for the breaker how that ended. Raises as `inspect`."""
        in_time = time.monotonic() < inspect_by  # else it is the time before it came here that was too long
        try:
            readings = await self.batcher.submit(images, min(deadline, inspect_by))
        except Expired:
            if inspect_by >= deadline:
                self.breaker.left()
                raise
            if in_time:
                self.breaker.failed()
            raise InspectionTimeout(TOO_SLOW) from None
        except Unchecked as error:
            if not isinstance(error.__cause__, GuardError | None):  # the engine's own
                self.breaker.failed()
            raise
        except asyncio.CancelledError:
            self.breaker.left()
            raise
        self.breaker.succeeded()
        return readings

    def before_answer(self, found: Inspection, answers: AnswerCalibration) -> Inspection:
        """The inspection of a request by what is known before the model answers, whatever that will be."""
        return self.judge.judged(answers.before(found.readings), answers.ranks, found.ties)

    def after_answer(self, found: Inspection, answers: AnswerCalibration, named: NDArray[np.int64]) -> Inspection:
        """The inspection of a request with the classes [item] that the model names."""
        return self.judge.judged(answers.after(found.readings, found.ties, named), answers.ranks, found.ties)

    async def repair(
        self, images: NDArray[Any], found: Inspection, deadline: float, inspect_by: float
    ) -> tuple[NDArray[Any], Inspection]:
        """Return the images with suspicious items cleaned, and the inspection with the verdict on what came of it.

        Where the request is judged as a whole all items are cleaned. An item whose repaired answer is not stable (see
        `Repaired`) is rejected instead.

        Raises:
            Expired: the deadline passed meanwhile.
            InspectionTimeout: `inspect_by` passed meanwhile.
        """
        whole = self.policy.rows == "request"
        chosen = np.asarray([whole or item is Action.REPAIR for item in found.verdict.items])
        forward, stable = images.copy(), np.ones(len(images), dtype=np.bool_)
        try:
            async with asyncio.timeout(min(deadline, inspect_by) - time.monotonic()):
                cleaned = await self.engine.repair(images[chosen], self.policy.repair or "")
        except TimeoutError as error:
            if inspect_by < deadline:
                raise InspectionTimeout(TOO_SLOW) from error
            raise Expired("the deadline passed while the request was repaired; nothing was forwarded") from error
        forward[chosen], stable[chosen] = cleaned.images, cleaned.stable
        verdict = repaired(found.verdict, stable.tolist())
        return forward, replace(found, verdict=verdict, enacted=self.policy.enact(verdict.request))

    def unchecked(self, error: Exception) -> str | None:
        """The reason for which a request passes uninspected after this error; None where the error is the answer."""
        return excuse(self.policy, error)

    def item_labels(self, verdict: Verdict) -> tuple[str, ...]:
        """The label of each item's own verdict; where the request is judged as a whole, of the request's."""
        items = (verdict.request,) * len(verdict.items) if self.policy.rows == "request" else verdict.items
        return tuple(label(item, self.policy.enact(item)) for item in items)


def label(judged: Action, enacted: Action) -> str:
    """The action for metrics and logs: what happened, or what would have happened in `enforce`."""
    return judged.value if judged is enacted else f"would_{judged.value}"


def verdict_fields(found: Inspection) -> dict[str, Any]:
    """The fields of a log line about an inspection: its worst item, and what each detector made of that."""
    readings, worst = found.readings, found.worst
    detectors = zip(found.detectors, readings.detector_p[worst].tolist(), strict=True)
    suspicious = [index for index, item in enumerate(found.verdict.items) if item is not Action.PASS]
    return {
        "items": len(found.verdict.items),
        "suspicious": suspicious[:MAX_LOGGED_ITEMS],
        "worst_item": worst,
        "p_value": float(readings.p_value[worst]),
        "prediction": int(readings.prediction[worst]),
        "detectors": {name: None if np.isnan(p) else p for name, p in detectors},
    }
