"""The service guard.v1, on the admin listener only: verdicts and what explains them, the bundle at work, the drain."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.errors import UnknownModel
from guard.explanation import Explanation, reduced
from guard.judge import Inspection
from guard.policy import Action
from guard.serve.build import guard_version
from guard.serve.draining import Drain
from guard.serve.explainer import MAX_ITEMS, Explainer
from guard.serve.grpc import decode
from guard.serve.grpc.call import Call
from guard.serve.grpc.door import Door
from guard.serve.grpc.listener import Methods
from guard.serve.grpc.scan import embedded
from guard.serve.grpc.service import Service
from guard.serve.grpc.wire import guard_pb2
from guard.serve.grpc.wire.guard_pb2 import (
    DescribeResponse,
    Detector,
    DrainResponse,
    ExplainResponse,
    InspectResponse,
    Item,
    Model,
    NearestItem,
    Opinion,
    ReloadResponse,
    SaliencyMap,
)
from guard.serve.guarded_model import GuardedModel
from guard.serve.readiness import Readiness
from guard.serve.reload import Reloader

SERVICE = "guard.v1.Guard"
MAX_MAP_POINTS = 128  # of a saliency map, along one axis
DESCRIBED_ABOVE = (  # fields of the only model that are the response's own too
    *("bundle_digest", "manifest_json", "mode", "on_failure", "rows", "repair"),
    *("reject_rate", "flag_rate", "calibration_items"),
)


@dataclass(frozen=True)
class Admin:
    """The methods of guard.v1: Inspect, Explain, Describe, Reload and Drain."""

    service: Service
    readiness: Readiness
    reloader: Reloader
    draining: Drain
    explainer: Explainer = field(default_factory=Explainer)

    def decoded(self, request: bytes, max_items: int | None = None) -> tuple[GuardedModel, NDArray[Any]]:
        """The model that an embedded request is for, and its items [item, ...]. Raises RequestError."""
        parsed = decode.parse(embedded(request))
        message = parsed.message
        guarded = self.service.models.find(message.model_name, message.model_version)
        if guarded is None:
            raise UnknownModel(f"no bundle guards model {message.model_name!r}; it passes uninspected")
        most = guarded.inspector.max_items
        most = most if max_items is None else min(most, max_items)
        return guarded, decode.decode(parsed, guarded.spec.input, max_items=most).images

    async def inspect(self, request: bytes, call: Call) -> bytes:
        """Answer Inspect: a verdict as `enforce` would have it; nothing is forwarded, and no request metric changes."""
        guarded, images = self.decoded(request)
        inspector = guarded.inspector
        by = time.monotonic() + guarded.config.inspect_timeout_s
        found = await inspector.inspect(images, call.deadline, by)
        if found.verdict.request is Action.REPAIR:
            _, found = await inspector.repair(images, found, call.deadline, by)
        answer: bytes = inspect_response(guarded.bundle, found).SerializeToString()
        return answer

    async def explain(self, request: bytes, call: Call) -> bytes:
        """Answer Explain: what lies behind the verdict on each of a few items, when the device is idle."""
        guarded, images = self.decoded(request, MAX_ITEMS)
        found = await self.explainer.explain(guarded, images, call.deadline)
        items = []
        for place, one in enumerate(found):
            judged = guarded.inspector.judged(one.readings, images[place : place + 1])
            items.append(explanation_message(inspected_items(guarded.bundle, judged)[0], one))
        answer: bytes = ExplainResponse(items=items, bundle_digest=guarded.bundle.digest).SerializeToString()
        return answer

    async def describe(self, request: bytes, call: Call) -> bytes:  # noqa: ARG002
        """Answer Describe: the guard, and each of its models; where there is one alone, its fields stand above too."""
        table, because = self.service.models.table, self.readiness.because
        models = [self.described(model) for model in table.models]
        response = DescribeResponse(
            ready=because is None, not_ready_because=because or "", guard_version=guard_version(), models=models
        )
        if table.only is not None:
            for name in DESCRIBED_ABOVE:
                setattr(response, name, getattr(models[0], name))
        answer: bytes = response.SerializeToString()
        return answer

    def described(self, model: GuardedModel) -> Model:
        policy, because = model.policy, self.readiness.of(model.label)
        return Model(
            name=model.spec.name,
            version=model.spec.version,
            label=model.label,
            bundle_digest=model.bundle.digest,
            manifest_json=json.dumps(asdict(model.bundle.manifest), sort_keys=True),
            mode=policy.mode,
            on_failure=policy.on_failure,
            rows=policy.rows,
            repair=policy.repair or "",
            reject_rate=policy.reject_rate,
            flag_rate=policy.flag_rate,
            calibration_items=model.inspector.calibration.items,
            ready=because is None,
            not_ready_because=because or "",
        )

    async def reload(self, request: bytes, call: Call) -> bytes:  # noqa: ARG002
        """Answer Reload once it is over; where it failed, with the status of what is wrong with the settings."""
        found = await self.reloader.reload("admin")
        answer: bytes = ReloadResponse(
            result=found.result, changed=found.changed, needs_restart=found.needs_restart
        ).SerializeToString()
        return answer

    async def drain(self, request: bytes, call: Call) -> bytes:  # noqa: ARG002
        """Answer Drain: the drain begins, unless it has, and how far it is."""
        self.draining.begin()
        found = self.draining.progress()
        answer: bytes = DrainResponse(
            remaining_s=found.remaining_s,
            closed=found.is_closed,
            told=found.told,
            connections=found.connections,
            calls=found.calls,
        ).SerializeToString()
        return answer

    def methods(self, door: Door) -> Methods:
        found = {
            "Inspect": self.inspect,
            "Explain": self.explain,
            "Describe": self.describe,
            "Reload": self.reload,
            "Drain": self.drain,
        }
        return {f"/{SERVICE}/{name}": door.unary(work) for name, work in found.items()}


def inspect_response(bundle: Bundle, found: Inspection) -> InspectResponse:
    """The answer to Inspect: the verdict with its reasons."""
    return InspectResponse(
        action=found.verdict.request.value,
        items=inspected_items(bundle, found),
        bundle_digest=bundle.digest,
        request_p_value=found.request_p_value or 0.0,
    )


def inspected_items(bundle: Bundle, found: Inspection) -> list[Item]:
    """The verdict on each item, with its reasons."""
    readings, names = found.readings, found.detectors
    return [
        Item(
            action=action.value,
            p_value=readings.p_value[index],
            prediction=readings.prediction[index],
            program=bundle.manifest.programs[readings.program[index]].name,
            detectors=[
                Detector(name=name) if np.isnan(p) else Detector(name=name, p_value=p, score=score)
                for name, p, score in zip(names, readings.detector_p[index], readings.scores[index], strict=True)
            ],
        )
        for index, action in enumerate(found.verdict.items)
    ]


def explanation_message(verdict: Item, found: Explanation) -> guard_pb2.Explanation:
    """The answer to Explain for one item."""
    small = None if found.saliency is None else reduced(found.saliency, MAX_MAP_POINTS)
    return guard_pb2.Explanation(
        verdict=verdict,
        probability=found.probability,
        saliency=None if small is None else SaliencyMap(shape=small.shape, levels=small.tobytes()),
        opinions=[Opinion(**asdict(one)) for one in found.opinions],
        nearest=[NearestItem(**asdict(one)) for one in found.nearest],
    )
