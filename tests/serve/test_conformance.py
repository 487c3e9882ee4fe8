"""Conformance runs against three servers, against proxies with planted faults, and as a command."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from guard import cli
from guard.errors import ConfigError, DataError, NotReadyError
from guard.serve.client_channel import ClientTls
from guard.serve.conformance.checks import CHECKS
from guard.serve.conformance.conformance import TrialOptions, only_model, read_request, tried
from guard.serve.conformance.procedures import CHANGES, listed_models, procedures, request_of_zeros
from guard.serve.conformance.reply import calling
from guard.serve.conformance.report import ConformanceReport
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest, ModelMetadataResponse
from tests.serve import tiny_bundle
from tests.serve.authority import Authority, server_credentials
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.faulty_proxy import FAULTS, faulty, started
from tests.serve.guarded import config_for, free_port, guarding_at, infer_request
from tests.serve.mlserver_process import mlserver_process
from tests.serve.odd_upstream import OddUpstream
from tests.serve.processes import guard_process, model_process

TEN_S = 10.0
READING = ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")


def trial(upstream: str, **options: Any) -> ConformanceReport:
    return asyncio.run(tried(TrialOptions(upstream, timeout_s=TEN_S, **options)))


def passed(report: ConformanceReport) -> set[str]:
    assert [f"{finding.name}: {finding.because}" for finding in report.of("failed")] == []
    return {finding.name for finding in report.of("passed")}


def rows(*names: str) -> set[str]:
    return {f"{name}/{check}" for name in names for check in CHECKS}


@pytest.mark.parametrize("mode", ["enforce", "shadow", "off"])
def test_the_reference_upstream(bundle: Path, tmp_path: Path, mode: str) -> None:
    with model_process(tmp_path) as model:
        upstream = model.until_event("listening")["inference"]
        report = trial(upstream, bundle=str(bundle), mode=mode)
    assert rows(*READING) <= passed(report)
    assert {finding.procedure for finding in report.findings} == {one.name for one in procedures(None)}
    skipped = {finding.name: finding.because for finding in report.of("skipped")}
    assert "guard answers it itself" in skipped["ServerLive/cancel"]
    assert skipped["RepositoryModelLoad/bytes"] == CHANGES
    assert "allow_methods" in skipped["RepositoryModelLoad/status"]


@pytest.mark.parametrize("mode", ["enforce", "off"])
def test_mlserver(side: Callable[[str], Path], bundle: Path, tmp_path: Path, mode: str) -> None:
    file = tmp_path / "tiny.onnx"
    file.write_bytes(tiny_bundle.classifier())
    with mlserver_process(side("mlserver"), tmp_path, file, tiny_bundle.MODEL_NAME) as upstream:
        report = trial(upstream, bundle=str(bundle), mode=mode)
    both = ("RepositoryIndex", "ModelRepositoryService.RepositoryIndex")
    assert rows(*READING, *both, *(["ModelStreamInfer"] if mode == "off" else [])) <= passed(report)


def test_an_odd_server(bundle: Path) -> None:
    """Bytes, order of values, texts and binary metadata of a server that uses all of them."""

    async def story() -> ConformanceReport:
        async with listening(OddUpstream()) as upstream:
            return await tried(TrialOptions(upstream, bundle=str(bundle), timeout_s=TEN_S))

    report = asyncio.run(story())
    assert rows("ModelReady", "ModelMetadata", "ModelInfer", "ModelConfig") <= passed(report)
    (statistics,) = [one for one in report.findings if one.name == "ModelStatistics/bytes"]
    assert statistics.because == "the server answers the same request otherwise each time"


def test_a_guard_that_is_there(bundle: Path, tmp_path: Path) -> None:
    """What only an observer could tell is skipped by name, the rest is compared."""
    request = tmp_path / "request"
    request.write_bytes(infer_request(tiny_bundle.ordinary(1)).SerializeToString())

    async def story() -> ConformanceReport:
        async with listening(OddUpstream()) as upstream, guarding_at(bundle, upstream) as guarded:
            await guarded.until_ready()
            return await tried(TrialOptions(upstream, guard=guarded.serving.address, request=request))

    report = asyncio.run(story())
    checks = ("bytes", "status", "trailers", "bin", "compression")
    assert {f"ModelInfer/{check}" for check in checks} <= passed(report)
    skipped = {finding.name: finding.because for finding in report.of("skipped")}
    assert "max_message_bytes" in skipped["ModelInfer/limits"]
    assert all("--guard" in skipped[f"ModelInfer/{check}"] for check in ("details", "deadline", "cancel"))
    assert "allow_methods" in skipped["ModelConfig/status"]


def test_without_a_bundle_the_guard_that_is_started_passes_all() -> None:
    async def story() -> ConformanceReport:
        async with listening(OddUpstream()) as upstream:
            return await tried(TrialOptions(upstream, only=("ModelInfer", "ServerMetadata"), model="tiny"))

    report = asyncio.run(story())
    assert report.guard == "started, mode off"
    assert not list(report.of("failed"))
    assert "ServerMetadata/bytes" in passed(report)


def test_a_server_that_speaks_tls_and_wants_a_certificate(tmp_path: Path) -> None:
    """The server is reached by its name in the certificate; in the clear it is said what to give."""
    servers, clients = Authority(), Authority()
    certificate, key = (Path(file) for file in clients.issue(common_name="caller").write(tmp_path, "caller"))
    tls = ClientTls(Path(servers.write(tmp_path, "ca.crt")), certificate, key, "localhost")

    async def story(spoken: ClientTls | None) -> ConformanceReport:
        credentials = server_credentials(servers.issue(), clients)
        async with listening(OddUpstream(), credentials=credentials) as upstream:
            options = TrialOptions(upstream, only=("ModelInfer", "ServerMetadata"), model="tiny", tls=spoken)
            return await tried(options)

    report = asyncio.run(story(tls))
    assert "ModelInfer/bytes" in passed(report)
    with pytest.raises(NotReadyError, match="without TLS; --tls"):
        asyncio.run(story(None))


def test_a_guard_that_would_inspect_needs_a_bundle() -> None:
    async def story() -> ConformanceReport:
        async with listening(OddUpstream()) as upstream:
            return await tried(TrialOptions(upstream, mode="enforce", model="tiny"))

    with pytest.raises(ConfigError, match="give --bundle DIRECTORY, or --mode off"):
        asyncio.run(story())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(bundle: Path, fault: str) -> None:
    async def story() -> ConformanceReport:
        async with listening(OddUpstream()) as upstream:
            options = TrialOptions(upstream, bundle=str(bundle), only=("ModelInfer",), timeout_s=TEN_S)
            return await tried(options, start=partial(started, fault))

    failed = {finding.name: finding.because for finding in asyncio.run(story()).of("failed")}
    if fault == "none":
        assert failed == {}
    else:
        assert f"ModelInfer/{FAULTS[fault]}" in failed


@pytest.mark.parametrize(
    "fault", ["drops trailers", "answers NOT_FOUND as UNKNOWN", "speaks ASCII", "alters an answer"]
)
def test_a_fault_of_a_guard_that_is_there_is_found(fault: str) -> None:
    """Without an observer, as far as the server itself shows it."""

    async def story() -> ConformanceReport:
        async with listening(OddUpstream()) as upstream, faulty(upstream, fault) as address:
            options = TrialOptions(upstream, guard=address, model=tiny_bundle.MODEL_NAME, only=("ModelInfer",))
            return await tried(options)

    assert f"ModelInfer/{FAULTS[fault]}" in {finding.name for finding in asyncio.run(story()).of("failed")}


def test_nothing_that_changes_a_server_comes_to_it(bundle: Path) -> None:
    fake = FakeUpstream()

    async def story() -> None:
        async with listening(fake) as upstream:
            await tried(TrialOptions(upstream, bundle=str(bundle), mode="off", timeout_s=TEN_S))

    asyncio.run(story())
    changing = {one.name for one in procedures(None) if one.withheld == CHANGES}
    assert len(changing) == 8
    assert not changing & set(fake.calls)
    assert len(fake.calls) < 400
    assert sum(map(len, fake.requests)) < 32 * 2**20


def test_without_a_model_the_rest_is_tried(bundle: Path) -> None:
    async def story() -> ConformanceReport:
        async with listening(OddUpstream()) as upstream, guarding_at(bundle, upstream) as guarded:
            await guarded.until_ready()
            return await tried(TrialOptions(upstream, guard=guarded.serving.address))

    report = asyncio.run(story())
    assert {"ServerReady/bytes", "ServerMetadata/bytes"} <= passed(report)
    skipped = {finding.name: finding.because for finding in report.of("skipped")}
    assert "--model" in skipped["ModelInfer/bytes"]


def test_a_request_is_made_up_from_what_the_server_tells() -> None:
    kind = ModelMetadataResponse.TensorMetadata
    inputs = [
        kind(name="x", datatype="FP32", shape=[-1, 3, 2]),
        kind(name="words", datatype="BYTES", shape=[-1, 4]),
        kind(name="half", datatype="BF16", shape=[2]),
    ]
    told = ModelMetadataResponse(name="m", inputs=inputs).SerializeToString()
    found = request_of_zeros(told, "m", "2")
    assert [(one.name, list(one.shape)) for one in found.inputs] == [("x", [1, 3, 2]), ("words", [1, 4]), ("half", [2])]
    assert [len(raw) for raw in found.raw_input_contents] == [24, 16, 4]
    assert (found.model_name, found.model_version) == ("m", "2")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "no inputs"),
        ([("x", "FP32", [2**15, 2**15])], "too large"),
        ([("x", "FP4", [1])], "'FP4'"),
    ],
)
def test_a_request_that_cannot_be_made_up(inputs: list[tuple[str, str, list[int]]], said: str) -> None:
    kind = ModelMetadataResponse.TensorMetadata
    message = ModelMetadataResponse(inputs=[kind(name=n, datatype=d, shape=s) for n, d, s in inputs])
    with pytest.raises(DataError, match=rf"(?s){said}.*--request FILE"):
        request_of_zeros(message.SerializeToString(), "m", "")
    with pytest.raises(DataError, match="--request FILE"):
        request_of_zeros(b"\xff\xff", "m", "")


def test_models_in_an_index_are_found() -> None:
    one, two = b"\n\x04tiny\x12\x011\x1a\x05READY", b"\n\x05other"
    index = b"".join(b"\n" + bytes([len(entry)]) + entry for entry in (one, two))
    assert listed_models(index) == [("tiny", "1"), ("other", "")]
    assert listed_models(b"") == []

    async def story() -> str:
        async with listening(FakeUpstream()) as upstream, calling(upstream) as direct:
            return await only_model(direct, TEN_S)

    assert asyncio.run(story()) == ""


def test_a_request_from_a_file(tmp_path: Path) -> None:
    message = infer_request(tiny_bundle.ordinary(1))
    file = tmp_path / "request"
    file.write_bytes(message.SerializeToString())
    assert read_request(file) == message
    file.write_text(json_format.MessageToJson(message))
    assert read_request(file) == message
    for content in (b"{]", b'{"model": 1}', b"\xff\xff\xff"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="no ModelInferRequest"):
            read_request(file)


def test_the_command(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report by name, tables of 80 columns, and exit codes that a pipeline can read."""
    out = tmp_path / "report.json"
    request, attack = tmp_path / "request", tmp_path / "attack"
    request.write_bytes(infer_request(tiny_bundle.ordinary(1)).SerializeToString())
    attack.write_bytes(infer_request(tiny_bundle.bright(1)).SerializeToString())
    with model_process(tmp_path) as model:
        upstream = model.until_event("listening")["inference"]
        with guard_process(config_for(bundle, upstream)) as guard:
            address = guard.until_event("listening")["inference"]
            guard.until_event("ready")
            words = ["conformance", "--upstream", upstream, "--guard", address]
            assert cli.run([*words, "--request", str(request), "--out", str(out)]) == 0
            said = capsys.readouterr().out
            assert cli.run([*words, "--request", str(attack), "--only", "ModelInfer"]) == 0
            of_attack = re.sub(r"\s+", " ", capsys.readouterr().out)
            assert cli.run([*words, "--model", "nobody"]) == 3
            assert "--model" in capsys.readouterr().err
    assert max(map(len, said.splitlines())) <= 80
    report = json.loads(out.read_text())
    assert {"format", "upstream", "guard", "model", "made_by", "passed", "failed", "skipped"} == set(report)
    assert "ModelInfer/bytes" in report["passed"]
    assert report["failed"] == []
    assert {"name", "because"} == set(report["skipped"][0])
    assert f"{len(report['passed'])} passed, 0 failed, {len(report['skipped'])} skipped" in said
    assert "the guard took the request for an attack" in of_attack


def test_the_command_says_what_is_missing(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    assert cli.run(["conformance", "--upstream", nowhere, "--timeout", "0.2"]) == 10
    assert nowhere in capsys.readouterr().err
    assert cli.run(["conformance", "--upstream", "nonsense"]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_a_difference_has_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> int:
        async with listening(OddUpstream()) as upstream, faulty(upstream, "alters an answer") as address:
            words = ["conformance", "--upstream", upstream, "--guard", address, "--model", tiny_bundle.MODEL_NAME]
            assert await asyncio.to_thread(cli.run, [*words, "--only", "Nothing"]) == 2
            return await asyncio.to_thread(cli.run, [*words, "--only", "ModelInfer", "--only", "ServerLive"])

    assert asyncio.run(story()) == 12
    found = capsys.readouterr()
    assert "ModelInfer/bytes" in found.out
    assert "ServerMetadata" not in found.out
    assert "checks failed" in found.err


def test_zeros_are_an_input_of_the_tiny_model(tmp_path: Path) -> None:
    message = ModelInferRequest.FromString(
        request_of_zeros(
            ModelMetadataResponse(
                inputs=[
                    ModelMetadataResponse.TensorMetadata(name="input", datatype="FP32", shape=[-1, *tiny_bundle.SHAPE])
                ]
            ).SerializeToString(),
            "tiny",
            "",
        ).SerializeToString()
    )
    assert np.frombuffer(message.raw_input_contents[0], np.float32).size == np.prod(tiny_bundle.SHAPE)
