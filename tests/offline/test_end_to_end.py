"""One trained bundle, three ways to a p-value, and what the model server receives when an input is repaired."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.offline.demo_model import AsTuple
from guard.offline.model.onnx_export.export import lower
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import read
from guard.policy import Action, Policy
from guard.runtime import Runtime
from guard.scoring import score_lines
from guard.serve.grpc.wire import guard_pb2
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest, ModelInferResponse, ModelMetadataResponse
from guard.serve.log import Log
from guard.serve.model_server import ServedModel
from guard.serve.model_server import serving as model_serving
from guard.serve.server import running
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import calling, config_for, guarding, infer_request, metric_of
from tests.serve.triton_process import ask_triton


class Recording(FakeUpstream):
    """Answers with the bundle's own logits, and keeps what it was sent."""

    def __init__(self, runtime: Runtime) -> None:
        model = runtime.bundle.manifest.model
        kind = ModelMetadataResponse.TensorMetadata
        super().__init__(
            metadata=ModelMetadataResponse(
                name=model.name,
                inputs=[kind(name=model.input.name, datatype="FP32", shape=[-1, *model.input.shape])],
                outputs=[kind(name=model.output.name, datatype="FP32", shape=[-1, model.output.classes])],
            )
        )
        self.runtime = runtime

    async def infer(self, request: bytes, context: Any) -> bytes:
        del context
        self.requests.append(request)
        logits = self.runtime.read(tensor_of(ModelInferRequest.FromString(request))).logits
        response = ModelInferResponse(model_name=self.metadata.name)
        response.outputs.add(name="logits", datatype="FP32", shape=logits.shape)
        response.raw_output_contents.append(logits.tobytes())
        return response.SerializeToString()


def tensor_of(request: ModelInferRequest) -> NDArray[np.float32]:
    return np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tuple(request.inputs[0].shape))


def test_score_evaluation_and_wire_give_the_same_p_values(
    tiny_bundle: Bundle,
    clean_inputs: NDArray[np.float32],
    served_name: str,
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "data.npz", images=clean_inputs)
    lines = [json.loads(line) for line in score_lines(tiny_bundle.path, tmp_path / "data.npz", device="cpu", threads=1)]
    evaluated = read(Runtime.open(tiny_bundle, threads=1), clean_inputs).p_value

    async def inspect() -> list[float]:
        async with (
            guarding(tiny_bundle.path, Recording(Runtime.open(tiny_bundle, threads=1))) as guard,
            calling(guard.serving.admin_address) as operator,
        ):
            request = guard_pb2.InspectRequest()
            request.request.ParseFromString(infer_request(clean_inputs, name=served_name).SerializeToString())
            answer = await operator.call("/guard.v1.Guard/Inspect", request)
        return [item.p_value for item in guard_pb2.InspectResponse.FromString(answer.body).items]

    over_the_wire = asyncio.run(inspect())
    assert [line["p_value"] for line in lines] == [round(p, 6) for p in over_the_wire]
    np.testing.assert_array_equal(evaluated, over_the_wire)


def test_repair_by_median_is_what_the_model_server_receives(
    tiny_bundle: Bundle,
    clean_inputs: NDArray[np.float32],
    served_name: str,
) -> None:
    runtime = Runtime.open(tiny_bundle, threads=1)
    policy = Policy(reject_rate=tiny_bundle.manifest.reject_rate, flag_rate=0.5, repair="median")
    p_values = runtime.read(clean_inputs).p_value
    judged = [policy.judge(float(p)) for p in p_values]
    stable = runtime.repair(clean_inputs, "median").stable
    judged = [Action.REJECT if a is Action.REPAIR and not s else a for a, s in zip(judged, stable, strict=True)]
    assert judged.count(Action.REPAIR) >= 3
    upstream = Recording(runtime)

    async def send() -> list[grpc.StatusCode]:
        async with guarding(tiny_bundle.path, upstream, repair="median", flag_rate=0.5) as guard:
            return [(await guard.client.infer(image[None], name=served_name)).code for image in clean_inputs]

    codes = asyncio.run(send())
    assert [code is grpc.StatusCode.PERMISSION_DENIED for code in codes] == [a is Action.REJECT for a in judged]
    received = iter(tensor_of(ModelInferRequest.FromString(request)) for request in upstream.requests)
    for image, action in zip(clean_inputs, judged, strict=True):
        if action is Action.REPAIR:
            np.testing.assert_array_equal(next(received), runtime.repair(image[None], "median").images)
        elif action is Action.PASS:
            np.testing.assert_array_equal(next(received), image[None])
    assert next(received, None) is None


def test_a_repair_that_is_a_network_was_trained_with_the_guard(
    tiny_bundle: Bundle, clean_inputs: NDArray[np.float32]
) -> None:
    (spec,) = [repair for repair in tiny_bundle.manifest.repairs if repair.name == "guided_unet"]
    assert (spec.expression, spec.opinions) == ("GuidedUNet(epochs=1)", ("cleaned once", "cleaned twice"))
    found = Runtime.open(tiny_bundle, threads=1).repair(clean_inputs, "guided_unet")
    assert found.images.shape == clean_inputs.shape
    assert 0 < float(np.abs(found.images - clean_inputs).mean()) < 0.1
    assert float(found.stable.mean()) > 0.8


def test_tritonclient_cannot_tell_the_guard_from_the_model_server(
    tiny_bundle: Bundle,
    tiny_subject: OpenedGuard,
    clean_inputs: NDArray[np.float32],
    caught_inputs: NDArray[np.float32],
    served_name: str,
    side: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Clean answers are equal byte for byte; crafted inputs are refused; the metrics account for every item."""
    file = tmp_path / "model.onnx"
    graph = tiny_subject.classifier.graph
    proto = lower(AsTuple(graph), torch.from_numpy(clean_inputs[:2]), input_name="input", output_names=("logits",))
    file.write_bytes(proto.SerializeToString())
    sent = np.concatenate([clean_inputs[:20], caught_inputs[:3]])

    def ask(address: str) -> dict[str, Any]:
        return ask_triton(side("triton"), address, served_name, sent)

    async def both() -> tuple[dict[str, Any], dict[str, Any], float]:
        model = ServedModel(file, name=served_name, version="", threads=1)
        log = Log("info", io.StringIO())
        async with (
            model_serving(model, "127.0.0.1:0") as upstream,
            running(config_for(tiny_bundle.path, upstream), log=log) as serving,
        ):
            while serving.readiness.because is not None:
                await asyncio.sleep(0.01)
            direct, guarded = await asyncio.to_thread(ask, upstream), await asyncio.to_thread(ask, serving.address)
            return direct, guarded, await metric_of(serving.metrics_address, "guard_items_total")

    direct, guarded, counted = asyncio.run(both())
    assert counted == len(sent)
    actions = Runtime.open(tiny_bundle, threads=1).read(sent).p_value <= tiny_bundle.manifest.reject_rate
    assert actions[-3:].all()
    for plain, seen, refused in zip(direct["answers"], guarded["answers"], actions, strict=True):
        if refused:
            assert seen["status"] == "StatusCode.PERMISSION_DENIED"
            told = re.sub(r"guard-id \w+", "", seen["message"])
            assert re.search(r"\d", told) is None, "a number in a refusal is a score, or reads like one"
        else:
            assert seen["raw"] == plain["raw"]
            assert seen["id"] == plain["id"]
