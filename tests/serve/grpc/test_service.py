"""What a client sees through the guard: modes, failure, metadata, repair, and what is counted."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from guard.bundle import Bundle
from guard.errors import ConfigError
from guard.model_config import ModelConfig
from guard.policy import Action
from guard.runtime import Runtime
from guard.serve.grpc.method_groups import opened_methods
from guard.serve.grpc.scan import MOST
from guard.serve.grpc.wire.guard_pb2 import InspectRequest, InspectResponse
from guard.serve.grpc.wire.inference_pb2 import (
    ModelInferRequest,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerReadyResponse,
)
from guard.serve.inspector import label
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, received
from tests.serve.guarded import calling, config_for, free_port, guarding, infer_request, until

ORDINARY, BRIGHT, STRIPED = tiny_bundle.ordinary(1), tiny_bundle.bright(1), tiny_bundle.striped(1)


@pytest.mark.parametrize("form", ["raw", "typed"])
def test_a_clean_request_goes_up_as_it_came_and_its_answer_comes_down_as_it_went(bundle: Path, form: str) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            request = infer_request(tiny_bundle.ordinary(3), form=form, id="mine").SerializeToString()
            answer = await guarded.client.call("ModelInfer", request)
            assert answer.ok
            assert guarded.upstream.requests == [request]
            assert answer.body == guarded.upstream.infer_response(request)
            assert answer.trailing["guard-verdict"] == "pass"
            assert guarded.upstream.headers[0]["guard-id"] == answer.trailing["guard-id"]

    asyncio.run(story())


@pytest.mark.parametrize("form", ["raw", "typed"])
@pytest.mark.parametrize("images", [BRIGHT, STRIPED], ids=["by screen", "by interpret"])
def test_an_adversarial_request_is_refused_and_never_forwarded(bundle: Path, form: str, images: Any) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            answer = await guarded.client.infer(images, form=form, id="7")
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED
            assert answer.details.startswith("refused by the guard: ")
            assert "not forwarded" in answer.details
            assert answer.reason == "REJECTED"
            assert answer.trailing["guard-verdict"] == "reject"
            assert guarded.upstream.requests == []
            (line,) = guarded.events("reject")
            assert line["id"] == answer.trailing["guard-id"]
            assert line["p_value"] <= tiny_bundle.REJECT_RATE
            assert line["request_id"] == "7"

    asyncio.run(story())


def test_a_refusal_leaks_no_score_and_no_item(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            ids, told = [], []
            for images in (
                BRIGHT,
                STRIPED,
                np.concatenate([tiny_bundle.ordinary(3), STRIPED]),
                np.concatenate([STRIPED, BRIGHT]),
            ):
                answer = await guarded.client.infer(images)
                ids.append(str(answer.trailing["guard-id"]))
                everything = repr((answer.details, sorted(answer.trailing.items()), sorted(answer.initial.items())))
                told.append(everything.replace(ids[-1], "ID"))
            assert len(set(ids)) == 4
            assert len(set(told)) == 1  # whatever was wrong, and with which item: the same words

    asyncio.run(story())


def test_one_bad_row_refuses_the_whole_request(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, max_rows=16) as guarded:
            images = tiny_bundle.ordinary(50)
            images[37:38] = BRIGHT
            answer = await guarded.client.infer(images)
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED
            assert guarded.upstream.requests == []
            assert guarded.events("reject")[0]["suspicious"] == [37]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("mode", "rejected", "label_found"),
    [
        ("enforce", True, "reject"),
        ("flag", False, "would_reject"),
        ("shadow", False, "would_reject"),
        ("off", False, "unchecked"),
    ],
)
def test_modes(bundle: Path, mode: str, *, rejected: bool, label_found: str) -> None:
    async def story() -> None:
        async with guarding(bundle, mode=mode) as guarded:
            answer = await guarded.client.infer(BRIGHT)
            assert answer.ok is not rejected
            assert len(guarded.upstream.requests) == (0 if rejected else 1)
            assert (
                await guarded.metric(
                    "guard_requests_total", action=label_found, model="other" if mode == "off" else "tiny"
                )
                == 1
            )
            if not rejected:
                assert answer.trailing["guard-verdict"] == ("unchecked" if mode == "off" else "pass")

    asyncio.run(story())


def test_every_item_is_accounted_for(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, flag_rate=0.05) as guarded:
            flagged = tiny_bundle.flagged(Bundle.open(bundle))
            batches = [
                tiny_bundle.ordinary(4),
                np.concatenate([tiny_bundle.ordinary(2), BRIGHT]),
                flagged,
                tiny_bundle.ordinary(1),
            ]
            for images in batches:
                await guarded.client.infer(images)
            await guarded.client.call("ModelInfer", b"\xff\xff")
            found = {
                action: await guarded.metric("guard_items_total", action=action)
                for action in ("pass", "reject", "flag")
            }
            assert found == {"pass": 7, "reject": 1, "flag": 1}
            assert await guarded.metric("guard_items_total") == sum(len(images) for images in batches)
            requests = {
                a: await guarded.metric("guard_requests_total", action=a) for a in ("pass", "reject", "flag", "refused")
            }
            assert requests == {"pass": 2, "reject": 1, "flag": 1, "refused": 1}
            assert await guarded.metric("guard_refused_total", reason="malformed_request") == 1
            assert await guarded.metric("guard_p_value_count") == 9
            assert await guarded.metric("guard_detector_p_value_count", detector="brightness") == 9
            assert await guarded.metric("guard_detector_p_value_count", detector="roughness") == 8  # screen decided one
            assert await guarded.metric("guard_request_seconds_count") == 5
            for stage in ("decode", "queue", "program", "upstream"):
                assert await guarded.metric("guard_stage_seconds_count", stage=stage) >= 3
            assert await guarded.metric("guard_bundle_info", model="tiny") == 1
            assert await guarded.metric("guard_ready") == 1
            assert await guarded.metric("guard_queue_rows") == 0

    asyncio.run(story())


@pytest.mark.parametrize("tell_flags", [False, True])
def test_a_flag_reads_pass_unless_the_operator_tells(bundle: Path, *, tell_flags: bool) -> None:
    async def story() -> None:
        async with guarding(bundle, tell_flags=tell_flags) as guarded:
            answer = await guarded.client.infer(tiny_bundle.flagged(Bundle.open(bundle)))
            assert answer.ok
            told = "flag" if tell_flags else "pass"
            assert answer.trailing["guard-verdict"] == told
            assert guarded.upstream.headers[0]["guard-verdict"] == told
            assert len(guarded.events("flag")) == 1

    asyncio.run(story())


@pytest.mark.parametrize("form", ["raw", "typed"])
def test_repair_sends_up_what_the_denoiser_made_of_it(bundle: Path, form: str) -> None:
    async def story() -> None:
        opened = Bundle.open(bundle)
        suspicious = tiny_bundle.flagged(opened)
        images = np.concatenate([tiny_bundle.ordinary(1), suspicious])
        async with guarding(bundle, repair="steps") as guarded:
            request = infer_request(images, form=form, id="r")
            request.parameters["kept"].int64_param = 3
            answer = await guarded.client.call("ModelInfer", request)
            assert answer.ok
            (sent,) = guarded.upstream.requests
            cleaned = Runtime.open(opened, threads=1).repair(suspicious, "steps").images
            assert not np.array_equal(cleaned, suspicious)
            np.testing.assert_array_equal(received(sent), np.concatenate([images[:1], cleaned]))
            message = type(request).FromString(sent)
            assert message.parameters["kept"].int64_param == 3
            assert bool(message.raw_input_contents) is (form == "raw")
            (line,) = guarded.events("repair")
            assert line["sha256_before"] == hashlib.sha256(images.tobytes()).hexdigest()
            assert line["sha256_after"] == hashlib.sha256(received(sent).tobytes()).hexdigest()
            assert answer.trailing["guard-verdict"] == "pass"
            assert await guarded.metric("guard_items_total", action="repair") == 1
            assert await guarded.metric("guard_upstream_compared_items_total") == 0  # it saw another input

    asyncio.run(story())


def test_what_is_not_stable_when_repaired_is_refused(bundle: Path) -> None:
    """For the operator, too; an item beside it that is not flagged is not repaired, and costs nothing."""

    async def story() -> None:
        images = np.concatenate([tiny_bundle.ordinary(1), tiny_bundle.flagged(Bundle.open(bundle), stable=False)])
        async with (
            guarding(bundle, repair="steps") as guarded,
            calling(guarded.serving.admin_address) as operator,
        ):
            request = infer_request(images)
            answer = await guarded.client.call("ModelInfer", request)
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED
            assert guarded.upstream.requests == []
            (line,) = guarded.events("reject")
            assert (line["repair"], line["repair_stable"], line["suspicious"]) == ("steps", False, [1])
            assert await guarded.metric("guard_items_total", action="repair") == 0
            assert await guarded.metric("guard_items_total", action="reject") == 1
            assert await guarded.metric("guard_items_total", action="pass") == 1
            body = (await operator.call("/guard.v1.Guard/Inspect", InspectRequest(request=request))).body
            assert [item.action for item in InspectResponse.FromString(body).items] == ["pass", "reject"]

    asyncio.run(story())


def test_what_is_not_flagged_is_not_cleaned(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    repair = Runtime.repair

    def noted(runtime: Runtime, images: Any, name: str) -> Any:
        sizes.append(len(images))
        return repair(runtime, images, name)

    async def story() -> None:
        suspicious = tiny_bundle.flagged(Bundle.open(bundle))
        async with guarding(bundle, repair="steps") as guarded:
            monkeypatch.setattr(Runtime, "repair", noted)
            for images in (tiny_bundle.ordinary(3), np.concatenate([tiny_bundle.ordinary(2), suspicious])):
                assert (await guarded.client.infer(images)).ok

    asyncio.run(story())
    assert sizes == [1]


def test_repair_works_on_bytes_too(tmp_path: Path) -> None:
    async def story() -> None:
        opened = tiny_bundle.make(tmp_path / "bundle", datatype="UINT8")
        suspicious = tiny_bundle.flagged(opened)
        fake = FakeUpstream()
        fake.metadata.inputs[0].datatype = "UINT8"
        async with guarding(opened.path, fake, repair="steps") as guarded:
            for form in ("raw", "typed"):
                assert (await guarded.client.infer(suspicious, form=form)).ok
                np.testing.assert_array_equal(
                    received(guarded.upstream.requests[-1]),
                    Runtime.open(opened, threads=1).repair(suspicious, "steps").images,
                )

    asyncio.run(story())


def test_end_to_end_metadata_passes_both_ways_and_marks_of_ours_do_not(bundle: Path) -> None:
    async def story() -> None:
        fake = FakeUpstream(
            initial=(("x-first", "1"), ("guard-verdict", "forged")),
            trailing=(("x-last-bin", b"\x00\xff"), ("guard-verdict", "forged"), ("guard-id", "forged")),
        )
        async with guarding(bundle, fake) as guarded:
            sent = (
                ("traceparent", "00-ab-cd-01"),
                ("token-bin", b"\x00\x01\xfe"),
                ("guard-verdict", "pass"),
                ("guard-skip", "1"),
            )
            answer = await guarded.client.infer(ORDINARY, metadata=sent)
            up = guarded.upstream.headers[0]
            assert up["traceparent"] == "00-ab-cd-01"
            assert up["token-bin"] == b"\x00\x01\xfe"
            assert "guard-skip" not in up
            assert up["guard-id"] == answer.trailing["guard-id"] != "forged"
            assert answer.initial["x-first"] == "1"
            assert "guard-verdict" not in answer.initial
            assert answer.trailing["x-last-bin"] == b"\x00\xff"
            assert answer.trailing["guard-verdict"] == "pass"

    asyncio.run(story())


def test_the_upstreams_own_failure_comes_down_untouched(bundle: Path) -> None:
    async def story() -> None:
        trailing = (("grpc-status-details-bin", b"\x08\x03\x12\x02hi"), ("x-why", "because"))
        fake = FakeUpstream(fail=(grpc.StatusCode.FAILED_PRECONDITION, "naïve ünïcode", trailing))
        async with guarding(bundle, fake) as guarded:
            answer = await guarded.client.infer(ORDINARY)
            assert (answer.code, answer.details) == (grpc.StatusCode.FAILED_PRECONDITION, "naïve ünïcode")
            assert answer.trailing["grpc-status-details-bin"] == b"\x08\x03\x12\x02hi"
            assert answer.trailing["x-why"] == "because"
            assert answer.trailing["guard-verdict"] == "pass"
            fake.fail = (grpc.StatusCode.UNAVAILABLE, "busy", ())
            answer = await guarded.client.infer(ORDINARY)
            assert (answer.code, answer.details) == (grpc.StatusCode.UNAVAILABLE, "busy")

    asyncio.run(story())


def test_deadlines_and_compression_pass_through(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, inspect_timeout_s=9.0) as guarded:
            assert (await guarded.client.infer(ORDINARY, timeout_s=5.0, compression=grpc.Compression.Gzip)).ok
            assert (await guarded.client.infer(ORDINARY, timeout_s=None)).ok
            set_by_client, unset = guarded.upstream.remaining
            assert 3.0 < (set_by_client or 0) < 6.0  # gRPC rounds up what it sends
            assert unset is None

    asyncio.run(story())


def test_a_stale_bundle_is_counted_and_said(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            for form in ("raw", "typed"):
                await guarded.client.infer(tiny_bundle.ordinary(3), form=form)
            assert await guarded.metric("guard_upstream_compared_items_total", model="tiny") == 6
            assert await guarded.metric("guard_upstream_disagreement_items_total", model="tiny") == 0
            guarded.upstream.wrong = True
            for form in ("raw", "typed"):
                assert (await guarded.client.infer(tiny_bundle.ordinary(3), form=form)).ok
            assert await guarded.metric("guard_upstream_disagreement_items_total", model="tiny") == 6
            assert len(guarded.events("disagreement")) == 1  # once in a while, not once a request

    asyncio.run(story())


def test_rows_any_and_request(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, rows="request", reject_rate=0.05, flag_rate=0.1) as guarded:
            assert (await guarded.client.infer(tiny_bundle.ordinary(2))).ok
            assert (
                await guarded.client.infer(np.concatenate([ORDINARY, BRIGHT]))
            ).code is grpc.StatusCode.PERMISSION_DENIED
            assert await guarded.metric("guard_items_total", action="reject") == 2  # judged as a whole
            largest = tiny_bundle.ITEMS // 19
            assert (await guarded.client.infer(tiny_bundle.ordinary(largest))).ok
            beyond = await guarded.client.infer(tiny_bundle.ordinary(largest + 1))
            assert beyond.code is grpc.StatusCode.FAILED_PRECONDITION
            assert f"at most {largest}" in beyond.details

    asyncio.run(story())


def test_harmless_methods_pass_and_liveness_is_our_own(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            client, fake = guarded.client, guarded.upstream
            assert ServerLiveResponse.FromString((await client.call("ServerLive", b"")).body).live
            assert "ServerLive" not in fake.calls
            assert ServerReadyResponse.FromString((await client.call("ServerReady", b"")).body).ready
            metadata = await client.call("ModelMetadata", ModelReadyRequest(name="tiny"))
            assert metadata.body == fake.metadata.SerializeToString()
            assert b"fake" in (await client.call("ServerMetadata", b"")).body
            assert ModelReadyResponse.FromString(
                (await client.call("ModelReady", ModelReadyRequest(name="tiny"))).body
            ).ready
            guarded.serving.readiness.say("drain", "for our own reasons, while the upstream is ready")
            guarded_ready = await client.call("ModelReady", ModelReadyRequest(name="tiny"))
            assert not ModelReadyResponse.FromString(guarded_ready.body).ready
            other_ready = await client.call("ModelReady", ModelReadyRequest(name="another"))
            assert ModelReadyResponse.FromString(other_ready.body).ready  # not ours to say
            assert not ServerReadyResponse.FromString((await client.call("ServerReady", b"")).body).ready
            assert ServerLiveResponse.FromString((await client.call("ServerLive", b"")).body).live

    asyncio.run(story())


def test_versions(tmp_path: Path) -> None:
    async def story() -> None:
        fake = FakeUpstream()
        fake.metadata.versions[:] = ["2"]
        async with guarding(tiny_bundle.make(tmp_path / "bundle", version="2").path, fake) as guarded:
            assert (await guarded.client.infer(ORDINARY, model_version="2")).ok
            assert (await guarded.client.infer(ORDINARY)).ok  # there is no other that the upstream could choose
            other = await guarded.client.infer(ORDINARY, model_version="1")
            assert other.code is grpc.StatusCode.NOT_FOUND
        fake.metadata.versions[:] = ["1", "2", "3"]
        async with guarding(tmp_path / "bundle", fake) as guarded:
            unnamed = await guarded.client.infer(ORDINARY)
            assert unnamed.code is grpc.StatusCode.NOT_FOUND
            assert "names no version" in unnamed.details
            assert (await guarded.client.infer(ORDINARY, model_version="2")).ok

    asyncio.run(story())


def test_a_bundle_without_a_version_is_for_the_only_one_that_there_is(bundle: Path) -> None:
    async def story() -> None:
        fake = FakeUpstream()
        fake.metadata.versions[:] = ["3"]
        async with guarding(bundle, fake) as guarded:
            for version in ("", "3"):
                assert (await guarded.client.infer(ORDINARY, model_version=version)).ok
            other = await guarded.client.infer(ORDINARY, model_version="4")
            assert (other.code, other.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")
            fake.metadata.versions[:] = ["3", "4"]
            await until(lambda: guarded.serving.readiness.because is not None)
            assert "versions 3, 4" in str(guarded.serving.readiness.because)
            sent = len(fake.requests)
            for version in ("", "3", "4", "5"):
                refused = await guarded.client.infer(ORDINARY, model_version=version)
                assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")
                assert "versions 3, 4" in refused.details
            assert len(fake.requests) == sent
            fake.metadata.versions[:] = ["4"]
            await guarded.until_ready()
            assert (await guarded.client.infer(ORDINARY, model_version="4")).ok

    asyncio.run(story())


def test_a_version_that_nobody_has_told_yet_is_not_taken_on_trust(bundle: Path) -> None:
    async def story() -> None:
        config = config_for(bundle, f"127.0.0.1:{free_port()}")
        async with running(config, log=Log("error", io.StringIO())) as serving, calling(serving.address) as client:
            named = await client.infer(ORDINARY, model_version="1")
            assert (named.code, named.reason) == (grpc.StatusCode.UNAVAILABLE, "UNCHECKED")
            assert (await client.infer(ORDINARY)).reason == "UPSTREAM_DOWN"

    asyncio.run(story())


def test_readiness_follows_a_disagreement_that_lasts_where_the_operator_says_so(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, max_disagreement=0.1) as guarded:
            guarded.upstream.wrong = True
            await guarded.client.infer(tiny_bundle.ordinary(32))
            assert guarded.serving.readiness.because is None  # a few items are no incident
            await guarded.client.infer(tiny_bundle.ordinary(32))
            assert "100% of the last items" in str(guarded.serving.readiness.because)
            assert await guarded.metric("guard_ready") == 0
            assert await guarded.metric("guard_upstream_disagreement_ratio") == 1
            guarded.upstream.wrong = False
            for _ in range(8):
                assert (await guarded.client.infer(tiny_bundle.ordinary(32))).ok
            await guarded.until_ready()

    asyncio.run(story())


@pytest.mark.parametrize(("measured", "ready"), [(0.9, True), (0.89, False)])
def test_a_disagreement_that_training_measured_is_allowed_beside_the_limit(
    measured: float, *, ready: bool, tmp_path: Path
) -> None:
    """An upstream that is wrong on 100% is not beyond a limit of 10% beside a measured 90%."""
    served = {"form": "is int8.onnx", "by": "tests", "items": 256, "changed": measured, "largest": 0.1}
    bundle = tiny_bundle.make(tmp_path / "bundle", provenance={"served": served})

    async def story() -> None:
        async with guarding(bundle.path, max_disagreement=0.1) as guarded:
            guarded.upstream.wrong = True
            for _ in range(2):
                await guarded.client.infer(tiny_bundle.ordinary(32))
            assert await guarded.metric("guard_upstream_disagreement_ratio") == 1
            assert (guarded.serving.readiness.because is None) is ready

    asyncio.run(story())


def test_a_table_of_many_columns_passes_where_the_operator_lets_its_model_pass(bundle: Path) -> None:
    """One tensor a column are more inputs than any guarded model has."""

    def table(name: str) -> bytes:
        message = ModelInferRequest(model_name=name, id="t")
        for column in range(MOST["inputs"] + 1):
            message.inputs.add(name=f"c{column}", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
        return bytes(message.SerializeToString())

    class AnyModel(FakeUpstream):
        def infer_response(self, request: bytes) -> bytes:
            self.requests.append(request)
            return b""

    async def story() -> None:
        fake = AnyModel()
        async with guarding(bundle, fake, allow_models=("table",)) as guarded:
            answer = await guarded.client.call("ModelInfer", table("table"))
            assert (answer.code.name, answer.trailing["guard-verdict"]) == ("OK", "unchecked")
            assert fake.requests[-1] == table("table")
            for name, reason in ((tiny_bundle.MODEL_NAME, "MALFORMED_REQUEST"), ("third", "UNKNOWN_MODEL")):
                assert (await guarded.client.call("ModelInfer", table(name))).reason == reason

    asyncio.run(story())


def test_what_the_operator_opens_passes_marked_and_counted(bundle: Path) -> None:
    async def story() -> None:
        fake = FakeUpstream(trailing=(("x-last", "1"), ("guard-verdict", "forged")))
        async with guarding(
            bundle, fake, allow_methods=("ModelConfig", "ModelStreamInfer"), allow_models=("other-model",)
        ) as guarded:
            config = await guarded.client.call("ModelConfig", b"\x01\x02")
            assert config.body == b"config of \x01\x02"
            assert config.trailing["guard-verdict"] == "unchecked"
            start: Any = guarded.client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            call = start(iter([b"a", b"b"]))
            assert [message async for message in call] == [b"streamed a", b"streamed b"]
            trailing = dict(await call.trailing_metadata())
            assert (trailing["x-last"], trailing["guard-verdict"]) == ("1", "unchecked")
            answer = await guarded.client.infer(BRIGHT, name="other-model")
            assert answer.ok
            assert answer.trailing["guard-verdict"] == "unchecked"
            assert await guarded.metric("guard_unchecked_total", reason="allowed_method") == 2
            assert await guarded.metric("guard_unchecked_total", reason="allowed_model", model="other-model") == 1
            assert await guarded.metric("guard_calls_total", method="ModelStreamInfer", outcome="opened") == 1

    asyncio.run(story())


def test_an_opened_method_ends_as_the_upstream_ends_it(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, allow_methods=("TraceSetting",)) as guarded:
            answer = await guarded.client.call("TraceSetting", b"")
            assert (answer.code, answer.details) == (grpc.StatusCode.UNIMPLEMENTED, "no TraceSetting")

    asyncio.run(story())


def test_labels_of_clients_making_do_not_grow_the_metrics(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            for index in range(5):
                await guarded.client.infer(ORDINARY, name=f"made-up-{index}")
                await guarded.client.call(f"/made.up/Method{index}", b"")
            assert await guarded.metric("guard_refused_total", reason="unknown_model") == 5
            assert await guarded.metric("guard_calls_total", method="other", outcome="refused") == 5

    asyncio.run(story())


def test_model_infer_cannot_be_opened() -> None:
    for name in (
        "ModelInfer",
        "inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelInfer",
    ):
        with pytest.raises(ConfigError, match="always inspected"):
            opened_methods([name])
    assert opened_methods(["a.B/C", "ModelConfig"]) == {"/a.B/C", "/inference.GRPCInferenceService/ModelConfig"}


def test_labels_say_what_would_have_happened() -> None:
    policy = ModelConfig("", mode="flag").policy(reject_rate=0.01, flag_rate=0.05)
    assert [label(action, policy.enact(action)) for action in Action] == [
        "pass",
        "flag",
        "would_repair",
        "would_reject",
    ]
