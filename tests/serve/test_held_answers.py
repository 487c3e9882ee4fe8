"""A guard that forwards before its verdict: the model's answer is held, compared, and delivered or discarded."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from guard.answer_evidence import evidence_of
from guard.bundle import Bundle
from guard.cascade import jitter
from guard.errors import BundleError, ConfigError, UserError
from guard.runtime import Runtime
from guard.serve.grpc.wire.guard_pb2 import InspectRequest, InspectResponse
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import closed_bundle, tiny_bundle
from tests.serve.closed_bundle import OUTPUT, ClosedUpstream, named, shares
from tests.serve.guarded import (
    PATIENCE_S,
    Answered,
    Guarded,
    calling,
    config_for,
    guarding,
    infer_request,
    metric_of,
    until,
)
from tests.serve.processes import guard_process, model_file_process

BEFORE: dict[str, Any] = {"forward": "before"}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return closed_bundle.make(tmp_path_factory.mktemp("held") / "closed").path


def asked(images: NDArray[Any], *outputs: str) -> ModelInferRequest:
    message = infer_request(images)
    for name in outputs:
        message.outputs.add(name=name)
    return message


async def infer(guarded: Guarded, images: NDArray[Any], *outputs: str, **options: Any) -> Answered:
    return await guarded.client.call("ModelInfer", asked(images, *outputs), **options)


async def counted(guarded: Guarded) -> dict[str, float]:
    """What became of the requests so far."""
    actions = ("pass", "flag", "reject", "would_flag", "would_reject", "unchecked", "refused", "failed")
    found = {a: await guarded.metric("guard_requests_total", action=a) for a in (*actions, "expired", "cancelled")}
    return {action: count for action, count in found.items() if count}


async def fates(guarded: Guarded) -> dict[str, float]:
    """What became of the answers so far."""
    names = ("not_asked", "delivered", "discarded", "not_compared")
    found = {name: await guarded.metric("guard_held_answers_total", fate=name) for name in names}
    return {name: count for name, count in found.items() if count}


async def ended(guarded: Guarded, requests: int) -> None:
    """Wait until so many requests stand in the books: an end is counted a moment after the client has it."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := sum((await counted(guarded)).values())) < requests:
        assert time.monotonic() < deadline, f"{found:.0f} of {requests} requests were counted"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("outputs", [(), (OUTPUT,), ("predict",), ("predict", OUTPUT)], ids=str)
def test_an_answer_that_agrees_is_delivered_as_it_came(closed: Path, outputs: Sequence[str]) -> None:
    async def story() -> None:
        upstream, request = ClosedUpstream(), asked(tiny_bundle.ordinary(2), *outputs)
        upstream.trailing = (("served-by", "one"),)
        async with guarding(closed, upstream, **BEFORE) as guarded:
            answer = await guarded.client.call("ModelInfer", request)
            await ended(guarded, 1)
            assert answer.body == upstream.infer_response(request.SerializeToString())
            assert upstream.requests == [request.SerializeToString()]
            assert answer.trailing["guard-verdict"] == "pass"
            assert answer.trailing["served-by"] == "one"
            assert "guard-verdict" not in upstream.headers[0]  # there was none yet
            assert upstream.headers[0]["guard-id"] == answer.trailing["guard-id"]
            assert await counted(guarded) == {"pass": 1}
            assert await fates(guarded) == {"delivered": 1}
            assert await guarded.metric("guard_items_total", action="pass") == 2
            assert await guarded.metric("guard_upstream_compared_items_total") == 2

    asyncio.run(story())


@pytest.mark.parametrize("outputs", [(), ("predict",)], ids=["probabilities", "labels"])
def test_an_answer_that_the_student_does_not_give_is_discarded(closed: Path, outputs: Sequence[str]) -> None:
    async def story() -> None:
        images = closed_bundle.contested()
        async with guarding(closed, ClosedUpstream()) as guarded:
            assert (await infer(guarded, images)).ok  # by the programs alone it passes
        async with guarding(closed, ClosedUpstream(), **BEFORE) as guarded:
            answer = await infer(guarded, images, *outputs)
            await ended(guarded, 1)
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED
            assert answer.reason == "REJECTED"
            assert answer.body == b""
            assert "not forwarded" not in answer.details
            assert len(guarded.upstream.requests) == 1  # the model saw it
            assert await counted(guarded) == {"reject": 1}
            assert await fates(guarded) == {"discarded": 1}
            (line,) = guarded.events("reject")
            assert line["model_asked"] is True
            assert line["detectors"]["answer"] < 0.01
            assert await guarded.metric("guard_detector_p_value_count", detector="answer") == 1
            assert await guarded.metric("guard_upstream_disagreement_items_total") == 1

    asyncio.run(story())


@pytest.mark.parametrize("images", [tiny_bundle.bright(), tiny_bundle.striped()], ids=["screen", "interpret"])
def test_what_the_programs_reject_the_model_never_sees(closed: Path, images: NDArray[np.float32]) -> None:
    async def story() -> None:
        async with guarding(closed, ClosedUpstream(), **BEFORE, reject_rate=0.015) as guarded:
            answer = await infer(guarded, images)
            await ended(guarded, 1)
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED
            assert guarded.upstream.requests == []
            assert await counted(guarded) == {"reject": 1}
            assert await fates(guarded) == {"not_asked": 1}
            (line,) = guarded.events("reject")
            assert line["model_asked"] is False
            assert line["detectors"]["answer"] is None

    asyncio.run(story())


@pytest.mark.parametrize("outputs", [(), ("predict",)], ids=["probabilities", "labels"])
def test_verdicts_are_those_of_the_evidence_that_was_calibrated(closed: Path, outputs: Sequence[str]) -> None:
    """What is evaluated is what is served: the same p-values for the same items, in whatever form the answer comes."""
    bundle = Bundle.open(closed)
    answers = evidence_of(bundle)
    assert answers is not None
    images = tiny_bundle.clean(60, seed=21)
    images[:20, 0, 0, 0] = np.linspace(0.88, 1, 20)
    readings = Runtime.open(bundle, threads=1).read(images)
    rate = 0.05
    rejected = answers.after(readings, jitter(images), named(images)).p_value <= rate
    assert 3 < rejected.sum() < 50
    assert (readings.p_value[rejected] > rate).any()

    async def story() -> None:
        async with guarding(closed, ClosedUpstream(), **BEFORE, reject_rate=rate, flag_rate=0.1) as guarded:
            seen = [await infer(guarded, one[None], *outputs) for one in images]
        assert [not answer.ok for answer in seen] == rejected.tolist()

    asyncio.run(story())


@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_an_answer_that_cannot_be_compared_follows_on_failure(closed: Path, on_failure: str) -> None:
    async def story() -> None:
        async with guarding(closed, ClosedUpstream(), **BEFORE, on_failure=on_failure) as guarded:
            answer = await infer(guarded, tiny_bundle.ordinary(), "embedding")
            await ended(guarded, 1)
            assert await fates(guarded) == {"not_compared": 1}
            assert len(guarded.upstream.requests) == 1
            if on_failure == "open":
                assert (answer.ok, answer.trailing["guard-verdict"]) == (True, "unchecked")
                assert await counted(guarded) == {"unchecked": 1}
                assert await guarded.metric("guard_unchecked_total", reason="unchecked") == 1
            else:
                assert (answer.code, answer.reason, answer.body) == (grpc.StatusCode.UNAVAILABLE, "UNCHECKED", b"")
                assert f"ask for output '{OUTPUT}'" in answer.details
                assert await counted(guarded) == {"refused": 1}
            assert await guarded.metric("guard_p_value_count") == 0  # nothing was judged

    asyncio.run(story())


def test_a_model_that_fails_is_never_a_verdict(closed: Path) -> None:
    async def story() -> None:
        upstream = ClosedUpstream(fail=(grpc.StatusCode.INTERNAL, "no room", ()))
        async with guarding(closed, upstream, **BEFORE, on_failure="open") as guarded:
            answer = await infer(guarded, tiny_bundle.ordinary())
            await ended(guarded, 1)
            assert (answer.code, answer.details) == (grpc.StatusCode.INTERNAL, "no room")
            assert "guard-verdict" not in answer.trailing
            assert await counted(guarded) == {"failed": 1}
            assert await fates(guarded) == {}
            assert await guarded.metric("guard_upstream_failures_total", code="INTERNAL") == 1
            assert await guarded.metric("guard_items_total", action="failed") == 1

    asyncio.run(story())


def test_the_wait_for_the_model_counts_for_the_deadline(closed: Path) -> None:
    async def story() -> None:
        async with guarding(closed, ClosedUpstream(), **BEFORE) as guarded:
            guarded.upstream.hang_infer = True
            answer = await infer(guarded, tiny_bundle.ordinary(), timeout_s=0.3)
            assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
            await ended(guarded, 1)
            assert await counted(guarded) == {"expired": 1}
            await until(lambda: guarded.upstream.cancelled == 1)
            assert await fates(guarded) == {}

    asyncio.run(story())


def test_a_client_that_leaves_takes_its_question_to_the_model_with_it(closed: Path) -> None:
    async def story() -> None:
        async with guarding(closed, ClosedUpstream(), **BEFORE) as guarded:
            guarded.upstream.hang_infer = True
            leaving = asyncio.create_task(infer(guarded, tiny_bundle.ordinary()))
            await until(lambda: len(guarded.upstream.calls) > 0 and "ModelInfer" in guarded.upstream.calls)
            leaving.cancel()
            await asyncio.wait([leaving])
            await until(lambda: guarded.upstream.cancelled == 1)
            await ended(guarded, 1)
            assert await counted(guarded) == {"cancelled": 1}

    asyncio.run(story())


@pytest.mark.parametrize("mode", ["flag", "shadow", "off"])
def test_modes_that_reject_nothing_deliver_every_answer(closed: Path, mode: str) -> None:
    async def story() -> None:
        async with guarding(closed, ClosedUpstream(), **BEFORE, mode=mode) as guarded:
            for images in (closed_bundle.contested(), tiny_bundle.bright()):
                answer = await infer(guarded, images)
                assert answer.ok
                assert answer.trailing["guard-verdict"] == ("unchecked" if mode == "off" else "pass")
            await ended(guarded, 2)
            assert await counted(guarded) == ({"unchecked": 2} if mode == "off" else {"would_reject": 2})
            assert await fates(guarded) == ({} if mode == "off" else {"delivered": 2})

    asyncio.run(story())


@pytest.mark.parametrize("tell_flags", [False, True])
def test_a_flag_is_told_as_in_the_other_modes(closed: Path, *, tell_flags: bool) -> None:
    async def story() -> None:
        rates = {"reject_rate": 0.002, "flag_rate": 0.05}
        async with guarding(closed, ClosedUpstream(), **BEFORE, **rates, tell_flags=tell_flags) as guarded:
            answer = await infer(guarded, closed_bundle.contested())
            await ended(guarded, 1)
            assert answer.ok
            assert answer.trailing["guard-verdict"] == ("flag" if tell_flags else "pass")
            assert await counted(guarded) == {"flag": 1}

    asyncio.run(story())


def test_a_request_as_a_whole_is_judged_by_its_riskiest_item(closed: Path) -> None:
    async def story() -> None:
        images = np.concatenate([tiny_bundle.ordinary(3), closed_bundle.contested(1)])
        async with guarding(closed, ClosedUpstream(), **BEFORE, rows="request", reject_rate=0.05) as guarded:
            assert (await infer(guarded, tiny_bundle.ordinary(4))).ok
            assert (await infer(guarded, images)).code is grpc.StatusCode.PERMISSION_DENIED
            await ended(guarded, 2)
            assert await guarded.metric("guard_items_total", action="reject") == 4

    asyncio.run(story())


def test_the_books_hold_every_request_of_a_mixed_crowd(closed: Path) -> None:
    """Answered, rejected early and late, not comparable, malformed: each once, and no mate is affected."""

    async def story() -> None:
        kinds: dict[str, tuple[NDArray[np.float32], tuple[str, ...], grpc.StatusCode]] = {
            "calm": (tiny_bundle.ordinary(), (), grpc.StatusCode.OK),
            "labels": (tiny_bundle.ordinary(2), ("predict",), grpc.StatusCode.OK),
            "contested": (closed_bundle.contested(), (), grpc.StatusCode.PERMISSION_DENIED),
            "bright": (tiny_bundle.bright(), (), grpc.StatusCode.PERMISSION_DENIED),
            "strange": (tiny_bundle.ordinary(), ("embedding",), grpc.StatusCode.UNAVAILABLE),
            "malformed": (np.zeros((1, 1, 4, 5), np.float32), (), grpc.StatusCode.INVALID_ARGUMENT),
        }
        async with guarding(closed, ClosedUpstream(), **BEFORE) as guarded:
            names = [name for name in kinds for _ in range(8)]
            answers = await asyncio.gather(*(infer(guarded, kinds[name][0], *kinds[name][1]) for name in names))
            assert [answer.code for answer in answers] == [kinds[name][2] for name in names]
            await ended(guarded, len(names))
            assert await counted(guarded) == {"pass": 16, "reject": 16, "refused": 16}
            assert await fates(guarded) == {"delivered": 16, "discarded": 8, "not_asked": 8, "not_compared": 8}
            assert len(guarded.upstream.requests) == 32
            assert Counter(line["model_asked"] for line in guarded.events("reject")) == {True: 8, False: 8}

    asyncio.run(story())


def test_inspect_judges_by_the_programs_alone(closed: Path) -> None:
    """Nothing is forwarded for an operator's question, so the model's answer is not there."""

    async def story() -> None:
        async with (
            guarding(closed, ClosedUpstream(), **BEFORE) as guarded,
            calling(guarded.serving.admin_address) as admin,
        ):
            request = InspectRequest(request=asked(closed_bundle.contested()))
            found = InspectResponse.FromString((await admin.call("/guard.v1.Guard/Inspect", request)).body)
            assert found.action == "pass"
            assert [one.name for one in found.items[0].detectors] == ["brightness", "roughness"]
            assert guarded.upstream.requests == []

    asyncio.run(story())


def test_no_message_of_a_stream_passes_before_its_verdict(closed: Path) -> None:
    async def story() -> None:
        async with guarding(closed, ClosedUpstream(), **BEFORE) as guarded:
            start: Any = guarded.client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            call = start(iter([asked(closed_bundle.contested()).SerializeToString()]), timeout=10)
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "a stream's answers are not held" in await call.details()
            assert guarded.upstream.requests == []
            assert await guarded.metric("guard_refused_total", reason="not_allowed") == 1

    asyncio.run(story())


REFUSED: dict[str, tuple[dict[str, Any], type[UserError], str]] = {
    "repair": ({"repair": "steps"}, ConfigError, "forward = 'before' excludes repair = 'steps'"),
    "stream": ({"allow_methods": ("ModelStreamInfer",)}, ConfigError, "a stream's answers are not held"),
    "stream by its full name": (
        {"allow_methods": ("/inference.GRPCInferenceService/ModelStreamInfer",)},
        ConfigError,
        "a stream's answers are not held",
    ),
}


@pytest.mark.parametrize(("settings", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_held_is_refused_at_the_start(
    closed: Path, settings: dict[str, Any], error: type[UserError], said: str
) -> None:
    async def story() -> None:
        with pytest.raises(error, match=said):
            async with running(config_for(closed, "127.0.0.1:1", **BEFORE, **settings), log=Log("error")):
                pass

    asyncio.run(story())


def test_a_bundle_without_answers_is_refused_at_the_start(bundle: Path) -> None:
    async def story() -> None:
        with pytest.raises(BundleError, match=r"has no calibration of answers; train it with --answers, or leave"):
            async with running(config_for(bundle, "127.0.0.1:1", **BEFORE), log=Log("error")):
                pass

    asyncio.run(story())


def test_it_holds_between_processes(closed: Path, tmp_path: Path) -> None:
    """Client, guard and model server, each a process: what agrees arrives as it came, the rest does not."""
    file = tmp_path / "closed.onnx"
    file.write_bytes(closed_bundle.classifier())
    images = [tiny_bundle.ordinary(3), closed_bundle.contested(), tiny_bundle.bright()]
    with (
        model_file_process(file, name=tiny_bundle.MODEL_NAME) as model,
        guard_process(config_for(closed, model.until_event("listening")["inference"], **BEFORE)) as guard,
    ):
        assert guard.until_event("guarding")["forward"] == "before"
        addresses = guard.until_event("listening")
        guard.until_event("ready")

        async def ask() -> tuple[list[Answered], list[Answered], dict[str, float]]:
            upstream = addresses["upstream"]
            async with calling(upstream) as direct, calling(addresses["inference"]) as guarded:
                plain = [await direct.infer(one) for one in images]
                seen = [await guarded.infer(one) for one in images]
            found = {
                fate: await metric_of(addresses["metrics"], "guard_held_answers_total", fate=fate)
                for fate in ("not_asked", "delivered", "discarded")
            }
            return plain, seen, found

        plain, seen, found = asyncio.run(ask())
    np.testing.assert_allclose(plain[1].logits[None], shares(images[1]), rtol=0, atol=1e-5)
    assert [answer.code for answer in seen] == [grpc.StatusCode.OK, *[grpc.StatusCode.PERMISSION_DENIED] * 2]
    assert seen[0].body == plain[0].body
    assert found == {"not_asked": 1, "delivered": 1, "discarded": 1}
