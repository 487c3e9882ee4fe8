"""The service guard.v1, on the admin listener only: verdicts with their reasons, and the bundle at work."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

import numpy as np

from guard.bundle import Bundle
from guard.errors import UnknownModel
from guard.judge import Inspection
from guard.policy import Action
from guard.serve.build import guard_version
from guard.serve.grpc.call import Call
from guard.serve.grpc.door import Door
from guard.serve.grpc.listener import Methods
from guard.serve.grpc.scan import embedded
from guard.serve.grpc.service import Service
from guard.serve.grpc.wire.guard_pb2 import (
    DescribeResponse,
    Detector,
    InspectResponse,
    Item,
)
from guard.serve.readiness import Readiness

SERVICE = "guard.v1.Guard"


@dataclass(frozen=True)
class Admin:
    """The methods of guard.v1: Inspect and Describe."""

    service: Service
    bundle: Bundle
    readiness: Readiness

    async def inspect(self, request: bytes, call: Call) -> bytes:
        """Answer Inspect: a verdict as `enforce` would have it; nothing is forwarded, and no request metric changes."""
        service = self.service
        message, decoded = service.read(embedded(request))
        if decoded is None:
            raise UnknownModel(f"no bundle guards model {message.model_name!r}; it passes uninspected")
        by = time.monotonic() + service.config.inspect_timeout_s
        found = await service.inspector.inspect(decoded.images, call.deadline, by)
        if found.verdict.request is Action.REPAIR:
            _, found = await service.inspector.repair(decoded.images, found, call.deadline, by)
        answer: bytes = self.response(found).SerializeToString()
        return answer

    def response(self, found: Inspection) -> InspectResponse:
        """The answer to Inspect: the verdict with its reasons."""
        readings, names = found.readings, found.detectors
        items = [
            Item(
                action=action.value,
                p_value=readings.p_value[index],
                prediction=readings.prediction[index],
                program=self.bundle.manifest.programs[readings.program[index]].name,
                detectors=[
                    Detector(name=name) if np.isnan(p) else Detector(name=name, p_value=p, score=score)
                    for name, p, score in zip(names, readings.detector_p[index], readings.scores[index], strict=True)
                ],
            )
            for index, action in enumerate(found.verdict.items)
        ]
        return InspectResponse(
            action=found.verdict.request.value,
            items=items,
            bundle_digest=self.bundle.digest,
            request_p_value=found.request_p_value or 0.0,
        )

    async def describe(self, request: bytes, call: Call) -> bytes:  # noqa: ARG002
        service = self.service
        policy, because = service.policy, self.readiness.because
        answer: bytes = DescribeResponse(
            bundle_digest=self.bundle.digest,
            manifest_json=json.dumps(asdict(self.bundle.manifest), sort_keys=True),
            mode=policy.mode,
            on_failure=policy.on_failure,
            rows=policy.rows,
            repair=policy.repair or "",
            reject_rate=policy.reject_rate,
            flag_rate=policy.flag_rate,
            calibration_items=service.inspector.calibration.items,
            ready=because is None,
            not_ready_because=because or "",
            guard_version=guard_version(),
        ).SerializeToString()
        return answer

    def methods(self, door: Door) -> Methods:
        return {f"/{SERVICE}/Inspect": door.unary(self.inspect), f"/{SERVICE}/Describe": door.unary(self.describe)}
