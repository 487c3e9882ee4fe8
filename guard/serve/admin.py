"""guard.v1 for the operator: verdicts with their reasons, and the bundle at work. On the admin listener only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
import numpy as np

from guard.bundle import Bundle
from guard.errors import UnknownModel
from guard.policy import Verdict
from guard.runtime import Readings
from guard.serve import decode
from guard.serve.call import Call
from guard.serve.readiness import Readiness
from guard.serve.service import Service
from guard.serve.wire.guard_pb2 import (
    DescribeRequest,
    DescribeResponse,
    Detector,
    InspectRequest,
    InspectResponse,
    Item,
)

SERVICE = "guard.v1.Guard"


@dataclass(frozen=True)
class Admin:
    """Inspect and Describe."""

    service: Service
    bundle: Bundle
    readiness: Readiness

    async def inspect(self, request: InspectRequest, context: Any) -> InspectResponse:
        """A verdict as `enforce` would have it; nothing is forwarded, and no request metric moves."""
        service = self.service
        call = Call.of(context, timeout_s=service.config.timeout_s)
        async with call.answering(service.log):
            if not service.guarded(request.request):
                raise UnknownModel(f"no bundle guards model {request.request.model_name!r}; it passes uninspected")
            images = decode.decode(request.request, service.model.input).images
            service.check_judgeable(len(images))
            readings = await service.batcher.submit(images, call.deadline)
            return self.response(service.judge(readings), readings)
        raise AssertionError("answering() has aborted the call")

    def response(self, verdict: Verdict, readings: Readings) -> InspectResponse:
        service = self.service
        names = service.calibration.detectors
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
            for index, action in enumerate(verdict.items)
        ]
        whole = service.request_p_value(readings) if service.policy.rows == "request" else 0.0
        return InspectResponse(
            action=verdict.request.value, items=items, bundle_digest=self.bundle.digest, request_p_value=whole
        )

    async def describe(self, request: DescribeRequest, context: Any) -> DescribeResponse:  # noqa: ARG002
        service = self.service
        policy, because = service.policy, self.readiness.because
        return DescribeResponse(
            bundle_digest=self.bundle.digest,
            manifest_json=json.dumps(asdict(self.bundle.manifest), sort_keys=True),
            mode=policy.mode,
            on_failure=policy.on_failure,
            rows=policy.rows,
            repair=policy.repair or "",
            reject_rate=policy.reject_rate,
            flag_rate=policy.flag_rate,
            calibration_items=service.calibration.items,
            ready=because is None,
            not_ready_because=because or "",
            guard_version=guard_version(),
        )

    def handler(self) -> grpc.GenericRpcHandler:
        def unary(method: Any, request: Any, response: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                method, request_deserializer=request.FromString, response_serializer=response.SerializeToString
            )

        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Inspect": unary(self.inspect, InspectRequest, InspectResponse),
                "Describe": unary(self.describe, DescribeRequest, DescribeResponse),
            },
        )


def guard_version() -> str:
    try:
        return version("inference-guard")
    except PackageNotFoundError:
        return "not installed"
