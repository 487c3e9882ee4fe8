"""MLServer behind the guard: client, guard and model server are processes, each with an installation of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.offline.demo_model import AsTuple
from guard.offline.model.onnx_export.export import lower
from guard.offline.programs.opened_guard import OpenedGuard
from guard.runtime import Runtime
from guard.serve.grpc.upstream_watch import mismatch
from guard.serve.grpc.wire.inference_pb2 import (
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ServerMetadataRequest,
)
from tests.bench.mlserver import Found, main, report
from tests.offline import tiny
from tests.serve.guarded import Answered, calling, config_for, infer_request, metric_of
from tests.serve.mlserver_process import mlserver_process
from tests.serve.processes import guard_process
from tests.serve.triton_process import ask_triton

ABSENT = "absent"  # a model that nobody has; the operator lets requests for it through
LARGEST_BYTES = 32 * 1024  # of a message to MLServer; the guard takes far more


@dataclass(frozen=True)
class House:
    """Where MLServer is, and the guard in front of it."""

    upstream: str
    guarded: str
    metrics: str
    model: Path  # what MLServer serves

    def both(self, method: str, request: Any) -> tuple[Answered, Answered]:
        """The same call to MLServer itself and through the guard."""

        async def ask(address: str) -> Answered:
            async with calling(address) as client:
                return await client.call(method, request)

        return asyncio.run(ask(self.upstream)), asyncio.run(ask(self.guarded))

    def metric(self, name: str, **labels: str) -> float:
        return asyncio.run(metric_of(self.metrics, name, **labels))


@pytest.fixture(scope="module")
def house(
    tiny_bundle: Bundle,
    tiny_subject: OpenedGuard,
    clean_inputs: NDArray[np.float32],
    served_name: str,
    side: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    """The tiny model in MLServer, and a guard that found it ready and as its bundle expects."""
    folder = tmp_path_factory.mktemp("mlserver")
    model = folder / "model.onnx"
    graph = AsTuple(tiny_subject.classifier.graph)
    proto = lower(graph, torch.from_numpy(clean_inputs[:2]), input_name="input", output_names=("logits",))
    model.write_bytes(proto.SerializeToString())
    limit = {"grpc_max_message_length": LARGEST_BYTES}
    with (
        mlserver_process(side("mlserver"), folder, model, served_name, **limit) as upstream,
        guard_process(config_for(tiny_bundle.path, upstream, allow_models=(ABSENT,))) as guard,
    ):
        listening = guard.until_event("listening")
        guard.until_event("ready")
        yield House(upstream, listening["inference"], listening["metrics"], model)


@pytest.fixture(scope="module")
def passing(tiny_bundle: Bundle, clean_inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clean inputs that the guard does not reject."""
    p = Runtime.open(tiny_bundle, threads=1).read(clean_inputs).p_value
    return clean_inputs[p > tiny_bundle.manifest.reject_rate]


def test_what_passes_is_mlservers_own_answer_and_what_is_crafted_does_not(
    house: House,
    tiny_bundle: Bundle,
    clean_inputs: NDArray[np.float32],
    caught_inputs: NDArray[np.float32],
    served_name: str,
    side: Callable[[str], Path],
) -> None:
    sent = np.concatenate([clean_inputs, caught_inputs])
    rejected = Runtime.open(tiny_bundle, threads=1).read(sent).p_value <= tiny_bundle.manifest.reject_rate
    assert rejected[len(clean_inputs) :].all()
    before = {action: house.metric("guard_items_total", action=action) for action in ("pass", "flag", "reject")}

    direct, guarded = (
        ask_triton(side("triton"), where, served_name, sent) for where in (house.upstream, house.guarded)
    )

    for plain, seen, refused in zip(direct["answers"], guarded["answers"], rejected, strict=True):
        if refused:
            assert seen["status"] == "StatusCode.PERMISSION_DENIED"
        else:
            assert seen == plain  # the whole message, byte for byte
    counted = {action: house.metric("guard_items_total", action=action) - before[action] for action in before}
    assert counted["reject"] == rejected.sum()
    assert counted["pass"] + counted["flag"] == (~rejected).sum()
    assert house.metric("guard_upstream_compared_items_total") >= (~rejected).sum()
    assert house.metric("guard_upstream_disagreement_items_total") == 0
    logits = np.asarray([answer["logits"][0] for answer in direct["answers"]])
    np.testing.assert_allclose(logits, Runtime.open(tiny_bundle, threads=1).read(sent).logits, rtol=0, atol=1e-4)


def test_health_and_metadata_are_mlservers_and_fit_the_bundle(
    house: House, tiny_bundle: Bundle, served_name: str
) -> None:
    for method, request in (
        ("ServerMetadata", ServerMetadataRequest()),
        ("ModelReady", ModelReadyRequest(name=served_name)),
        ("ModelMetadata", ModelMetadataRequest(name=served_name)),
    ):
        direct, guarded = house.both(method, request)
        assert (direct.code, direct.body) == (grpc.StatusCode.OK, guarded.body), method
    metadata = ModelMetadataResponse.FromString(guarded.body)
    assert mismatch(metadata, tiny_bundle.manifest.model, metadata.versions) is None
    (tensor,) = metadata.inputs
    spec = tiny_bundle.manifest.model.input
    assert (tensor.name, tensor.datatype, tuple(tensor.shape)) == (spec.name, spec.datatype, (-1, *spec.shape))


def test_typed_contents_come_back_typed_and_are_compared_with_the_bundle(
    house: House, passing: NDArray[np.float32], served_name: str
) -> None:
    """MLServer answers in the form in which it was asked; the guard reads both."""
    before = house.metric("guard_upstream_compared_items_total")
    answers = [
        house.both("ModelInfer", infer_request(passing[:3], form=form, name=served_name)) for form in ("raw", "typed")
    ]
    for direct, guarded in answers:
        assert guarded.code is direct.code is grpc.StatusCode.OK
        assert guarded.body == direct.body
    raw, typed = (ModelInferResponse.FromString(guarded.body) for _, guarded in answers)
    assert not typed.raw_output_contents
    told = np.asarray(typed.outputs[0].contents.fp32_contents, dtype=np.float32)
    assert told.tobytes() == raw.raw_output_contents[0]
    assert house.metric("guard_upstream_compared_items_total") - before == 6
    assert house.metric("guard_upstream_disagreement_items_total") == 0


def test_mlservers_errors_reach_the_client_as_they_are(
    house: House, passing: NDArray[np.float32], served_name: str
) -> None:
    no_such_output = infer_request(passing[:1], name=served_name)
    no_such_output.outputs.add(name="nonsense")
    too_large = infer_request(np.repeat(passing[:1], 1 + LARGEST_BYTES // passing[0].nbytes, axis=0), name=served_name)
    for method, request, code, said in (
        ("ModelInfer", no_such_output, grpc.StatusCode.INTERNAL, "Invalid output name:nonsense"),
        ("ModelInfer", too_large, grpc.StatusCode.RESOURCE_EXHAUSTED, f"vs. {LARGEST_BYTES}"),
        ("ModelInfer", infer_request(passing[:1], name=ABSENT), grpc.StatusCode.NOT_FOUND, "not found"),
        ("ModelMetadata", ModelMetadataRequest(name="other"), grpc.StatusCode.NOT_FOUND, "not found"),
        ("ModelReady", ModelReadyRequest(name="other"), grpc.StatusCode.UNKNOWN, "ModelNotFound"),
    ):
        direct, guarded = house.both(method, request)
        assert (direct.code, guarded.code) == (code, code), direct.details
        assert said in direct.details
        assert guarded.details == direct.details
        assert {
            key: value for key, value in guarded.trailing.items() if not key.startswith("guard-")
        } == direct.trailing


def test_what_the_guard_does_not_inspect_never_reaches_mlserver(
    house: House, passing: NDArray[np.float32], served_name: str
) -> None:
    _, unknown = house.both("ModelInfer", infer_request(passing[:1], name="other"))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")
    encoded = infer_request(passing[:1], name=served_name)
    encoded.inputs[0].parameters["content_type"].string_param = "base64"
    _, uninspectable = house.both("ModelInfer", encoded)
    assert (uninspectable.code, uninspectable.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UNINSPECTABLE")
    direct, streamed = house.both("ModelStreamInfer", infer_request(passing[:1], name=served_name))
    assert direct.ok
    assert (streamed.code, streamed.body) == (direct.code, direct.body)
    direct, refused = house.both("ModelStreamInfer", encoded)
    assert direct.ok  # MLServer would have answered, and its replies hold no error
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UNINSPECTABLE")


def test_the_bench_counts_the_same_on_both_sides(
    house: House, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m tests.bench.mlserver` from end to end: `guard serve` as users call it, fresh items, fresh attacks."""
    data = tiny.write_data(tmp_path / "data.npz", 120, seed=91)
    files = ["--bundle", tiny_bundle.path, "--model", house.model, "--data", data]
    sizes = ["--clean", "60", "--attacked", "15", "--budget", "1/4", "--steps", "8"]
    assert main([str(word) for word in (*files, *sizes)]) == 0
    said = capsys.readouterr().out
    passed, equal = re.search(r"passed +(\d+) of 75; (\d+) equal", said).groups()  # type: ignore[union-attr]
    rejected = re.search(r"metrics +(\d+) rejected", said).group(1)  # type: ignore[union-attr]
    assert passed == equal
    assert int(passed) + int(rejected) == 75


def test_the_bench_finds_what_is_wrong(tiny_bundle: Bundle) -> None:
    def answer(logit: float) -> dict[str, Any]:
        return {"logits": [[logit, 0.0, 0.0]]}

    refused = {"status": "StatusCode.PERMISSION_DENIED", "message": "no"}
    counted = {("guard_items_total", action): 0.0 for action in ("pass", "flag", "repair", "reject")}
    names = ("guard_upstream_compared_items_total", "guard_upstream_disagreement_items_total")
    metrics = counted | dict.fromkeys(((name, "") for name in names), 0.0)
    metrics["guard_items_total", "pass"] = metrics[names[0], ""] = 100
    metrics["guard_items_total", "reject"] = 1
    direct, through = [answer(1.0)] * 101, [answer(1.0)] * 100 + [refused]

    def faults(through: list[dict[str, Any]], **changes: float) -> str:
        changed = metrics | {("guard_items_total", action): value for action, value in changes.items()}
        return "; ".join(report(Found.of(direct, through, 90, changed), tiny_bundle))

    assert faults(through) == ""
    assert "not the direct answer" in faults([*through[:4], answer(1.5), *through[5:]])
    assert "UNAVAILABLE" in faults([{"status": "StatusCode.UNAVAILABLE"}, *through[1:]], **{"pass": 99})
    assert "other rejections" in faults(through, reject=2)
    assert "other passes" in faults(through, **{"pass": 99})
    assert "band" in faults([*[refused] * 60, *through[60:]], reject=61, **{"pass": 40})
