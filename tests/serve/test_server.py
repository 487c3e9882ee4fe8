"""Starting: what keeps a guard from starting is one error with a name; and what it offers beside inference."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from guard.errors import BundleError, ConfigError, DeviceError, GuardError, NotReadyError, PortError, PromiseError
from guard.runtime import Runtime
from guard.serve.grpc.wire.guard_pb2 import DescribeRequest, DescribeResponse, InspectRequest, InspectResponse
from guard.serve.log import Log
from guard.serve.probe import probe
from guard.serve.server import running
from guard.session import Session
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import calling, config_for, free_port, guarding, infer_request
from tests.serve.processes import ROOT, Process


def refusal(config: Any) -> GuardError:
    """The error with which a guard of this configuration refuses to start."""

    async def story() -> None:
        async with running(config, log=Log("error", io.StringIO())):
            raise AssertionError("it started")

    with pytest.raises(GuardError) as caught:
        asyncio.run(story())
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("listener", ["listen", "admin_listen", "metrics_listen"])
def test_a_taken_port(bundle: Path, listener: str, capfd: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            taken = guarded.serving.address
            capfd.readouterr()
            error = await asyncio.to_thread(refusal, config_for(bundle, "127.0.0.1:1", **{listener: taken}))
            # Read while the guard stands: where it leaves, gRPC's core may tell its clients' connections goodbye.
            assert capfd.readouterr().err == ""  # gRPC's core has nothing to add
            assert isinstance(error, PortError)
            assert taken in str(error)
            assert "in use" in str(error)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"upstream": ""}, ConfigError, "upstream"),
        ({"bundle": ""}, ConfigError, "bundle"),
        ({"bundle": "/nowhere"}, BundleError, "no such directory"),
        ({"reject_rate": 0.0001}, PromiseError, "9999"),
        ({"reject_rate": 0.2, "flag_rate": 0.1}, ConfigError, "at least as large"),
        ({"repair": "median"}, BundleError, "it has: steps"),
        ({"admin_listen": "0.0.0.0:0"}, ConfigError, "loopback"),
        ({"allow_methods": ("ModelInfer",)}, ConfigError, "always inspected"),
        ({"allow_methods": ("@statistic",)}, ConfigError, "did you mean '@statistics'"),
    ],
)
def test_what_cannot_be_promised_is_refused_at_the_start(
    bundle: Path, settings: dict[str, Any], kind: type, said: str
) -> None:
    error = refusal(replace(config_for(bundle, "127.0.0.1:1"), **settings))
    assert isinstance(error, kind)
    assert said in str(error)


def test_cuda_that_is_not_there_is_not_replaced_in_silence(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert isinstance(refusal(config_for(bundle, "127.0.0.1:1", device="cuda")), DeviceError)


def test_a_damaged_bundle(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "screen.onnx").write_bytes((copy / "screen.onnx").read_bytes()[:-10])
    assert isinstance(refusal(config_for(copy, "127.0.0.1:1")), BundleError)


def test_a_machine_that_gives_other_answers_does_not_start(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Session.run

    def off(session: Session, outputs: Any, inputs: Any) -> Any:
        found = real(session, outputs, inputs)
        return [found[0] * np.float32(1.01), *found[1:]]

    monkeypatch.setattr(Session, "run", off)
    error = refusal(config_for(bundle, "127.0.0.1:1"))
    assert isinstance(error, BundleError)
    assert "self-check" in str(error)


def test_a_thin_promise_is_logged(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, reject_rate=0.002) as guarded:
            assert "reject_rate" in guarded.events("thin promise")[0]["warning"]

    asyncio.run(story())


@pytest.mark.parametrize("inspect_timeout_s", [1e-6, 60.0])
def test_a_time_for_inspection_that_large_requests_cannot_keep_is_logged(
    bundle: Path, inspect_timeout_s: float
) -> None:
    async def story() -> None:
        async with guarding(bundle, inspect_timeout_s=inspect_timeout_s) as guarded:
            warned = [line["warning"] for line in guarded.events("slow programs")]
            if inspect_timeout_s == 60.0:
                assert warned == []
            else:
                assert "inspect_timeout_s = 1e-06; raise it, or let clients send at most 1 at once" in warned[0]

    asyncio.run(story())


def test_reflection_tells_what_is_served(bundle: Path) -> None:
    async def ask(address: str, **request: Any) -> Any:
        async with calling(address) as client:
            start: Any = client.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            call = start(iter([reflection_pb2.ServerReflectionRequest(**request).SerializeToString()]))
            answers = [reflection_pb2.ServerReflectionResponse.FromString(body) async for body in call]
            return answers[0]

    async def story() -> None:
        async with guarding(bundle) as guarded:
            listed = await ask(guarded.serving.address, list_services="")
            names = {service.name for service in listed.list_services_response.service}
            assert names == {
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
                "inference.GRPCInferenceService",
            }
            found = await ask(guarded.serving.address, file_containing_symbol="inference.GRPCInferenceService")
            (body,) = found.file_descriptor_response.file_descriptor_proto
            assert FileDescriptorProto.FromString(body).service[0].method[-1].name == "ModelInfer"
            listed = await ask(guarded.serving.admin_address, list_services="")
            assert "guard.v1.Guard" in {service.name for service in listed.list_services_response.service}

    asyncio.run(story())


def test_probe(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            address = guarded.serving.address
            await asyncio.to_thread(probe, address)
            for service in ("", "liveness", "inference.GRPCInferenceService"):
                await asyncio.to_thread(probe, address, service)
            with pytest.raises(NotReadyError, match="NOT_FOUND"):
                await asyncio.to_thread(probe, address, "nonsense")
            guarded.serving.readiness.say("drain", "x")
            with pytest.raises(NotReadyError, match="NOT_SERVING"):
                await asyncio.to_thread(probe, address)
            await asyncio.to_thread(probe, address, "liveness")
        with pytest.raises(NotReadyError, match="UNAVAILABLE"):
            await asyncio.to_thread(probe, f"127.0.0.1:{free_port()}")

    asyncio.run(story())


def test_watching_an_unknown_service(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            watch: Any = guarded.client.channel.unary_stream("/grpc.health.v1.Health/Watch")
            call = watch(health_pb2.HealthCheckRequest(service="?").SerializeToString())
            status = health_pb2.HealthCheckResponse.FromString(await anext(aiter(call))).status
            assert status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            call.cancel()

    asyncio.run(story())


def test_inspect_tells_the_operator_why_and_forwards_nothing(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded, calling(guarded.serving.admin_address) as admin:
            images = np.concatenate([tiny_bundle.ordinary(1), tiny_bundle.bright(1)])
            answer = await admin.call("/guard.v1.Guard/Inspect", InspectRequest(request=infer_request(images)))
            found = InspectResponse.FromString(answer.body)
            assert found.action == "reject"
            assert [item.action for item in found.items] == ["pass", "reject"]
            assert [item.program for item in found.items] == ["interpret", "screen"]
            assert found.items[1].p_value <= tiny_bundle.REJECT_RATE < found.items[0].p_value
            by_name = {detector.name: detector for detector in found.items[1].detectors}
            assert by_name["brightness"].HasField("p_value")
            assert not by_name["roughness"].HasField("p_value")  # it did not run; absent is not 1
            assert guarded.upstream.requests == []
            assert await guarded.metric("guard_requests_total") == 0
            bad = await admin.call(
                "/guard.v1.Guard/Inspect", InspectRequest(request=infer_request(images, name="other"))
            )
            assert bad.code is grpc.StatusCode.NOT_FOUND

    asyncio.run(story())


def test_describe(bundle: Path) -> None:
    async def story() -> None:
        async with (
            guarding(bundle, mode="shadow", repair="steps") as guarded,
            calling(guarded.serving.admin_address) as admin,
        ):
            found = DescribeResponse.FromString((await admin.call("/guard.v1.Guard/Describe", DescribeRequest())).body)
            assert (found.mode, found.on_failure, found.rows, found.repair) == ("shadow", "closed", "any", "steps")
            assert (found.reject_rate, found.flag_rate) == (tiny_bundle.REJECT_RATE, tiny_bundle.FLAG_RATE)
            assert found.calibration_items == tiny_bundle.ITEMS
            assert found.ready
            assert "brightness" in found.manifest_json
            assert (await admin.call("ModelInfer", b"")).code is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(story())


def test_the_guard_answers_while_its_programs_load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listening, alive, not ready, and closed."""
    go, real = threading.Event(), Runtime.self_check

    def slow(runtime: Runtime) -> None:
        assert go.wait(20)
        real(runtime)

    monkeypatch.setattr(Runtime, "self_check", slow)

    async def story() -> None:
        address, fake = f"127.0.0.1:{free_port()}", FakeUpstream()

        async def start() -> None:
            async with guarding(bundle, fake, listen=address) as guarded:
                assert (await guarded.client.infer(tiny_bundle.ordinary(1))).ok

        starting = asyncio.create_task(start())
        async with calling(address) as client:
            while not (alive := await client.call("ServerLive", b"")).ok:
                assert not starting.done()
                await asyncio.sleep(0.01)
            assert alive.ok
            assert (await client.call("ServerReady", b"")).body == b""  # ready = false
            answer = await client.infer(tiny_bundle.ordinary(1))
            assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "UNCHECKED")
            assert fake.requests == []
            go.set()
            await starting

    asyncio.run(story())


def test_links_to_a_service_called_guard_are_warned_of_once(bundle: Path) -> None:
    link = {"GUARD_PORT": "tcp://10.96.0.7:8081", "GUARD_SERVICE_HOST": "10.96.0.7", "GUARD_SERVICE_PORT": "8081"}
    listen = [f"--{name}=127.0.0.1:0" for name in ("listen", "admin-listen", "metrics-listen")]
    command = [sys.executable, "-m", "guard", "serve", f"--bundle={bundle}", "--upstream=127.0.0.1:1", *listen]
    environment = {**os.environ, **link, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as popen:
        started = Process(popen, [])
        try:
            started.until_event("listening")
        finally:
            popen.kill()
    (warned,) = [line for line in started.lines if line["event"] == "service links ignored"]
    assert warned["variables"] == sorted(link)
    assert "enableServiceLinks: false" in warned["warning"]
