"""Explain: what lies behind a verdict, for the operator alone, and never in the way of a request."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import guard
from guard import cli
from guard.audit_log import AuditLog
from guard.bundle import Bundle
from guard.errors import DataError, Overloaded
from guard.explanation import MAP_STEPS, explain, reduced, saliency_map
from guard.runtime import Runtime
from guard.serve.audit.events import tensor_fields
from guard.serve.explain_call import kept_input
from guard.serve.explainer import MAX_CALLS, MAX_ITEMS, Explainer
from guard.serve.grpc.wire.guard_pb2 import ExplainRequest, ExplainResponse, InspectRequest, InspectResponse
from tests.serve import tiny_bundle
from tests.serve.guarded import Client, Guarded, calling, guarding, infer_request, until

EXPLAIN = "/guard.v1.Guard/Explain"


@pytest.fixture(scope="module")
def explaining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that has a gradient and further answers."""
    return tiny_bundle.make(tmp_path_factory.mktemp("explains") / "bundle", explains=True).path


def images() -> Any:
    return np.concatenate([tiny_bundle.ordinary(1), tiny_bundle.striped(1), tiny_bundle.bright(1)])


async def asked(operator: Client, items: Any, **options: Any) -> ExplainResponse:
    answer = await operator.call(EXPLAIN, ExplainRequest(request=infer_request(items)), **options)
    assert answer.ok, answer
    return ExplainResponse.FromString(answer.body)


def test_an_explanation_is_the_programs_own(explaining: Path) -> None:
    items = images()
    matrix, second = tiny_bundle.weights()[0], tiny_bundle.second_matrix()
    flat = items.reshape(3, -1)
    logits = flat @ matrix
    for place, found in enumerate(explain(Runtime.open(Bundle.open(explaining), threads=1), items)):
        assert found.prediction == logits[place].argmax()
        shares = np.exp(logits[place]) / np.exp(logits[place]).sum()
        assert found.probability == pytest.approx(shares.max(), rel=1e-4)
        slope = np.abs(matrix[:, found.prediction]).reshape(4, 4)
        assert found.saliency is not None
        np.testing.assert_array_equal(found.saliency, np.rint(slope * MAP_STEPS / slope.max()))
        denoised, other = found.opinions
        assert (denoised.name, other.name) == tiny_bundle.EXPLAINING
        assert denoised.prediction == (np.round(flat[place] * 8) / 8 @ matrix).argmax()
        answers = flat[place] @ second
        assert other.prediction == answers.argmax()
        own = float(np.exp(answers[found.prediction]) / np.exp(answers).sum())
        assert other.model_class_probability == pytest.approx(own, rel=1e-4)
        assert [near.distance for near in found.nearest] == sorted(near.distance for near in found.nearest)
        assert not np.isnan(found.readings.detector_p).any()


def test_explain_tells_what_inspect_told_and_more(explaining: Path) -> None:
    async def story() -> None:
        async with guarding(explaining) as guarded, calling(guarded.serving.admin_address) as operator:
            request = infer_request(images())
            body = (await operator.call("/guard.v1.Guard/Inspect", InspectRequest(request=request))).body
            inspected = InspectResponse.FromString(body).items
            found = await asked(operator, images())
            assert [one.verdict.action for one in found.items] == [one.action for one in inspected]
            assert [one.verdict.action for one in found.items] == ["pass", "reject", "reject"]
            assert [one.verdict.p_value for one in found.items] == [one.p_value for one in inspected]
            assert not inspected[2].detectors[1].HasField("p_value")  # the first program had decided
            assert all(one.HasField("p_value") for each in found.items for one in each.verdict.detectors)
            assert list(found.items[0].saliency.shape) == [4, 4]
            assert max(found.items[0].saliency.levels) == MAP_STEPS
            assert found.bundle_digest == Bundle.open(explaining).digest
            assert guarded.upstream.requests == []
            assert await guarded.metric("guard_requests_total") == 0

    asyncio.run(story())


def test_a_bundle_without_a_gradient_has_no_map(bundle: Path) -> None:
    """As of preset `fast`, and of any bundle of before: no error."""

    async def story() -> None:
        async with guarding(bundle) as guarded, calling(guarded.serving.admin_address) as operator:
            (found,) = (await asked(operator, tiny_bundle.striped(1))).items
            assert not found.HasField("saliency")
            assert len(found.opinions) == 0
            assert found.verdict.action == "reject"
            assert len(found.nearest) == 3

    asyncio.run(story())


def test_clients_cannot_ask(explaining: Path) -> None:
    async def story() -> None:
        async with guarding(explaining) as guarded:
            answer = await guarded.client.call(EXPLAIN, ExplainRequest(request=infer_request(images())))
            assert answer.code is grpc.StatusCode.UNIMPLEMENTED
            assert answer.body == b""

    asyncio.run(story())


def test_what_cannot_be_explained_is_told(explaining: Path) -> None:
    async def story() -> None:
        async with guarding(explaining) as guarded, calling(guarded.serving.admin_address) as operator:
            many = await operator.call(
                EXPLAIN, ExplainRequest(request=infer_request(tiny_bundle.ordinary(MAX_ITEMS + 1)))
            )
            assert many.code is grpc.StatusCode.INVALID_ARGUMENT
            assert str(MAX_ITEMS) in many.details
            other = ExplainRequest(request=infer_request(images(), name="other"))
            assert (await operator.call(EXPLAIN, other)).code is grpc.StatusCode.NOT_FOUND
            assert (await operator.call(EXPLAIN, b"\xff")).code is grpc.StatusCode.INVALID_ARGUMENT
            assert len((await asked(operator, tiny_bundle.ordinary(MAX_ITEMS))).items) == MAX_ITEMS

    asyncio.run(story())


def test_requests_go_first(explaining: Path) -> None:
    """While the device is busy no explanation runs; those that wait are bounded, and give up at their deadline."""

    async def story(guarded: Guarded, operator: Client) -> None:
        (loaded,) = guarded.serving.models.table.loaded
        thread, held = loaded.engine.thread, threading.Event()
        holding = asyncio.create_task(thread.run(held.wait))
        await asyncio.sleep(0)
        late = await operator.call(EXPLAIN, ExplainRequest(request=infer_request(images())), timeout_s=0.3)
        assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
        waiting = [asyncio.create_task(asked(operator, images())) for _ in range(MAX_CALLS)]
        inferred = asyncio.create_task(guarded.client.infer(tiny_bundle.ordinary(1)))
        try:
            await until(lambda: thread.outstanding >= 2)  # the request waits for the device, the others behind it
            await asyncio.sleep(0.05)
            assert thread.outstanding == 2
        finally:
            held.set()
        assert (await inferred).ok
        assert all(len(found.items) == 3 for found in await asyncio.gather(*waiting))
        await holding

    async def told() -> None:
        async with guarding(explaining) as guarded, calling(guarded.serving.admin_address) as operator:
            await story(guarded, operator)

    asyncio.run(told())


def test_no_more_than_a_few_calls_wait(explaining: Path) -> None:
    async def story() -> None:
        async with guarding(explaining) as guarded:
            (model,) = guarded.serving.models.table.models
            explainer, held = Explainer(), threading.Event()
            holding = asyncio.create_task(model.loaded.engine.thread.run(held.wait))
            await asyncio.sleep(0)
            deadline = time.monotonic() + 20
            waiting = [
                asyncio.create_task(explainer.explain(model, tiny_bundle.ordinary(1), deadline))
                for _ in range(MAX_CALLS)
            ]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match=str(MAX_CALLS)):
                await explainer.explain(model, tiny_bundle.ordinary(1), deadline)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert explainer.calls == 0
            held.set()
            await holding
            assert len(await explainer.explain(model, tiny_bundle.ordinary(1), deadline)) == 1

    asyncio.run(story())


def test_the_command_explains_items_of_files_and_of_the_audit_log(
    explaining: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "inputs.npz", images=images(), labels=np.zeros(3, dtype=np.int64))
    log = tmp_path / "audit"

    async def story() -> None:
        async with guarding(explaining, audit_dir=str(log), audit_inputs=True) as guarded:
            rejected = await guarded.client.infer(tiny_bundle.striped(1))
            address, name = guarded.serving.admin_address, str(rejected.trailing["guard-id"])
            told = await asyncio.to_thread(run, str(tmp_path / "inputs.npz"), address, "--item", "1")
            assert "reject" in told
            assert "roughness" in told
            assert "second: tiny" in told
            await until(lambda: any(file.stat().st_size for file in log.glob("audit-*.jsonl")))
            found = json.loads(await asyncio.to_thread(run, str(log), address, "--id", name, "--json"))
            assert found["items"][0]["verdict"]["action"] == "reject"
            for wrong in (["--item", "3"], ["--id", name], ["--model", "other"]):
                assert await asyncio.to_thread(cli.run, ["explain", str(tmp_path / "inputs.npz"), address, *wrong]) == 3
            assert await asyncio.to_thread(cli.run, ["explain", str(log), address, "--id", "stranger"]) == 3
            assert await asyncio.to_thread(cli.run, ["explain", str(log), address]) == 3
            said = capsys.readouterr().err
            assert "stranger" in said
            assert "0 to 2" in said
            assert cli.run(["explain", str(tmp_path / "inputs.npz"), "127.0.0.1:1", "--timeout", "1"]) == 10

    def run(*arguments: str) -> str:
        assert cli.run(["explain", *arguments]) == 0
        return capsys.readouterr().out

    asyncio.run(story())


def test_a_message_of_a_stream_has_a_name_of_its_own(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, 1 << 20, 1e9)
    for number in (1, 2, 3):
        kept = {} if number == 1 else {"input": tensor_fields(np.full((1, 4, 4), number, np.float32))}
        line = {"action": "reject", "id": "abc", "message": number, **kept}
        log.append(json.dumps(line).encode() + b"\n", 1e9)
    assert kept_input(tmp_path, "abc, message 3").flat[0] == 3
    with pytest.raises(DataError, match=r"kept no input of 'abc, message 1'"):
        kept_input(tmp_path, "abc, message 1")
    with pytest.raises(DataError, match=r"inputs of 2 messages .* --id 'abc, message 2'"):
        kept_input(tmp_path, "abc")


def test_a_guard_in_process_explains_too(explaining: Path) -> None:
    opened = guard.open(explaining, threads=1)
    (found,) = opened.explain(tiny_bundle.striped(1))
    assert found.saliency is not None
    assert found.readings.p_value[0] == opened.inspect(tiny_bundle.striped(1)).readings.p_value[0]


@pytest.mark.parametrize(
    ("shape", "longest", "expected"), [((300, 7), 128, (100, 7)), ((128,), 128, (128,)), ((129,), 128, (65,))]
)
def test_a_map_is_reduced_to_what_it_shows_most_of(
    shape: tuple[int, ...], longest: int, expected: tuple[int, ...]
) -> None:
    values = np.zeros(shape, dtype=np.uint8)
    values.flat[-1] = 9
    small = reduced(values, longest)
    assert small.shape == expected
    assert small.flat[-1] == 9
    assert small.sum() == 9


@pytest.mark.parametrize("gradient", [np.zeros((3, 4, 4)), np.full((3, 4, 4), np.nan), np.ones((1, 5)), np.ones(6)])
def test_every_gradient_has_a_map(gradient: Any) -> None:
    found = saliency_map(gradient)
    assert found.shape == (gradient.shape[1:] or gradient.shape)
    assert found.max() in (0, MAP_STEPS)
