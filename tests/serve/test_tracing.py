"""Traces: the spans of a request at a real collector, what travels on, and that no client sees or feels any of it."""

from __future__ import annotations

import asyncio
import builtins
import io
import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.runtime import Runtime
from guard.serve import inference_call
from guard.serve.log import Log
from guard.serve.request_span import REQUEST_SPAN, Traced, Tracing, code_of
from guard.serve.tracing import is_wanted, tracing
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import Answered, Guarded, free_port, guarding, infer_request, until
from tests.serve.otlp_collector import Collector, attributes_of, collecting
from tests.serve.rest.rest_guarded import RestGuarded, json_body, rest_guarding
from tests.serve.streaming_upstream import StreamingUpstream

ORDINARY, BRIGHT = tiny_bundle.ordinary(1), tiny_bundle.bright(1)
INFER = "inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "inference.GRPCInferenceService/ModelStreamInfer"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "a=1"), ("baggage", "b=2"), ("x-b3-traceid", TRACE))
SERVER, CLIENT, ERROR = 2, 3, 2


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector to which the variables lead, as an operator sets them."""
    found = Collector()
    with collecting(found) as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield found


def test_each_stage_of_a_request_is_a_span_of_the_clients_trace(bundle: Path, collector: Collector) -> None:
    async def story() -> Guarded:
        async with guarding(bundle) as guarded:
            answer = await guarded.client.infer(ORDINARY, metadata=SENT)
            assert answer.ok
            assert not any("trace" in key for key in (*answer.initial, *answer.trailing))
        return guarded

    guarded = asyncio.run(story())
    spans = {span.name: span for span in collector.spans}  # the end of the guard has sent them
    assert sorted(spans) == ["guard.decode", "guard.program", "guard.queue", "guard.upstream", INFER]
    whole = spans[INFER]
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert whole.parent_span_id.hex() == SPAN
    assert {span.parent_span_id for span in collector.spans if span is not whole} == {whole.span_id}
    assert (whole.kind, spans["guard.upstream"].kind) == (SERVER, CLIENT)
    found = attributes_of(whole)
    assert found["rpc.system.name"] == "grpc"
    assert found["rpc.method"] == INFER
    assert found["rpc.response.status_code"] == "OK"
    assert found["guard.action"] == "pass"
    assert found["guard.p_value"] > tiny_bundle.REJECT_RATE
    assert found["guard.model"] == tiny_bundle.MODEL_NAME
    for span in collector.spans:
        assert whole.start_time_unix_nano <= span.start_time_unix_nano + 1_000_000
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= whole.end_time_unix_nano
        assert span.status.code == 0
    (link,) = spans["guard.program"].links
    assert link.span_id == whole.span_id
    up = guarded.upstream.headers[-1]
    assert up["traceparent"] == f"00-{TRACE}-{spans['guard.upstream'].span_id.hex()}-01"
    assert (up["tracestate"], up["baggage"], up["x-b3-traceid"]) == ("a=1", "b=2", TRACE)
    assert collector.resources[0]["service.name"] == "guard"


def test_a_client_without_a_trace_begins_one_and_the_log_names_it(bundle: Path, collector: Collector) -> None:
    async def story() -> Guarded:
        async with guarding(bundle) as guarded:
            assert not (await guarded.client.infer(BRIGHT)).ok
            assert not (await guarded.client.infer(BRIGHT, metadata=SENT)).ok
        return guarded

    guarded = asyncio.run(story())
    for line, span in zip(guarded.events("reject"), collector.named(INFER), strict=True):
        assert (line["trace_id"], line["span_id"]) == (span.trace_id.hex(), span.span_id.hex())
        found = attributes_of(span)
        assert (found["guard.id"], found["guard.action"]) == (line["id"], "reject")
        assert found["rpc.response.status_code"] == "PERMISSION_DENIED"
        assert span.status.code == 0  # the guard did what it is there for
    assert collector.named("guard.upstream") == []
    assert len({span.trace_id for span in collector.spans}) == 2


@pytest.mark.parametrize("sampled", [True, False])
def test_what_the_client_says_of_sampling_holds(bundle: Path, collector: Collector, *, sampled: bool) -> None:
    flags = f"{sampled:02d}"

    async def story() -> Guarded:
        async with guarding(bundle) as guarded:
            assert (await guarded.client.infer(ORDINARY, metadata=[("traceparent", f"00-{TRACE}-{SPAN}-{flags}")])).ok
        return guarded

    guarded = asyncio.run(story())
    version, trace, _, said = guarded.upstream.headers[-1]["traceparent"].split("-")
    assert (version, trace, said) == ("00", TRACE, flags)
    assert bool(collector.spans) is sampled


def test_a_request_by_rest_is_traced_likewise(bundle: Path, collector: Collector) -> None:
    async def story() -> RestGuarded:
        async with rest_guarding(bundle) as guarded:
            assert (await guarded.post(json_body(ORDINARY), dict(SENT))).status_code == 200
            assert (await guarded.post(json_body(BRIGHT), dict(SENT))).status_code == 403
        return guarded

    guarded = asyncio.run(story())
    passed, refused = collector.named("POST /v2/models/{model}/infer")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert attributes_of(passed)["http.response.status_code"] == 200
    assert attributes_of(refused)["http.response.status_code"] == 403
    assert (attributes_of(passed)["guard.action"], attributes_of(refused)["guard.action"]) == ("pass", "reject")
    (upstream,) = collector.named("guard.upstream")
    up = dict(guarded.upstream.headers[-1])
    assert up["traceparent"] == f"00-{TRACE}-{upstream.span_id.hex()}-01"
    assert (up["tracestate"], up["baggage"]) == ("a=1", "b=2")


def test_each_message_of_a_stream_is_a_span_of_the_clients_trace(bundle: Path, collector: Collector) -> None:
    async def story() -> None:
        async with guarding(bundle, StreamingUpstream(server="triton")) as guarded:
            start: Any = guarded.client.channel.stream_stream(f"/{STREAM_INFER}")
            sent = [infer_request(images).SerializeToString() for images in (ORDINARY, BRIGHT)]
            call = start(iter(sent), metadata=SENT, timeout=10)
            assert len([reply async for reply in call]) == 2

    asyncio.run(story())
    passed, refused = collector.named(STREAM_INFER)
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert (attributes_of(passed)["guard.action"], attributes_of(refused)["guard.action"]) == ("pass", "reject")


def test_failures_are_told(bundle: Path, collector: Collector) -> None:
    async def story() -> None:
        fake = FakeUpstream(fail=(grpc.StatusCode.INTERNAL, "broken", ()))
        async with guarding(bundle, fake) as guarded:
            assert (await guarded.client.infer(ORDINARY)).code is grpc.StatusCode.INTERNAL
            assert (await guarded.client.infer(ORDINARY, name="stranger")).code is grpc.StatusCode.NOT_FOUND

    asyncio.run(story())
    failed, unknown = collector.named(INFER)
    (upstream,) = collector.named("guard.upstream")
    assert attributes_of(failed)["rpc.response.status_code"] == attributes_of(upstream)["error.type"] == "INTERNAL"
    assert failed.status.code == upstream.status.code == ERROR
    assert attributes_of(unknown)["rpc.response.status_code"] == "NOT_FOUND"
    assert attributes_of(unknown)["guard.action"] == "refused"
    assert unknown.status.code == 0


def test_a_batch_has_one_span_that_is_linked_with_its_requests(
    bundle: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, read = threading.Event(), Runtime.read
    sizes: list[int] = []

    def slow(runtime: Runtime, images: Any, **options: Any) -> Any:
        if not options:
            sizes.append(len(images))
            assert go.wait(20)
        return read(runtime, images, **options)

    async def story() -> None:
        async with guarding(bundle) as guarded:
            monkeypatch.setattr(Runtime, "read", slow)
            calls = [asyncio.create_task(guarded.client.infer(ORDINARY)) for _ in range(4)]
            await until(lambda: bool(sizes))
            await asyncio.sleep(0.2)  # so that the others wait
            go.set()
            assert all(answer.ok for answer in await asyncio.gather(*calls))

    asyncio.run(story())
    requests = {span.span_id: span for span in collector.named(INFER)}
    programs = collector.named("guard.program")
    assert [attributes_of(span)["guard.items"] for span in programs] == sizes
    assert sorted(link.span_id for span in programs for link in span.links) == sorted(requests)
    for program in programs:
        for link in program.links:
            request = requests[link.span_id]
            below = program.parent_span_id == request.span_id
            assert below or program.span_id in {one.span_id for one in request.links}


def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_call, "IDS", random.Random(7))


def test_no_client_sees_whether_it_is_traced(
    bundle: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Details and trailers are the same to the byte: instrumentation packages have swallowed them."""

    def faulty(*given: Any, **options: Any) -> Any:
        raise RuntimeError("a fault of the device")

    async def story() -> list[Answered]:
        fake = FakeUpstream(trailing=(("x-a", "1"), ("x-b-bin", b"\x00\x01")))
        async with guarding(bundle, fake) as guarded:
            infer = guarded.client.infer
            found = [await infer(ORDINARY), await infer(BRIGHT, metadata=SENT), await infer(ORDINARY, name="x")]
            fake.fail = (grpc.StatusCode.INTERNAL, "bröken", (("grpc-status-details-bin", b"\x08\x0d"),))
            found.append(await infer(ORDINARY))
            with monkeypatch.context() as patched:
                patched.setattr(Runtime, "read", faulty)
                found.append(await infer(ORDINARY))
            return found

    seeded(monkeypatch)
    traced = asyncio.run(story())
    assert len(collector.named(INFER)) == len(traced)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    seeded(monkeypatch)
    assert asyncio.run(story()) == traced
    assert [answer.code.name for answer in traced] == [
        *("OK", "PERMISSION_DENIED", "NOT_FOUND", "INTERNAL", "UNAVAILABLE"),
    ]
    assert "grpc-status-details-bin" in traced[1].trailing


@pytest.mark.parametrize("fault", ["hangs", "is away"])
def test_a_collector_that_fails_costs_no_request(bundle: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    async def story() -> tuple[float, int]:
        async with guarding(bundle) as guarded:
            longest_s = 0.0
            for _ in range(300):
                began = time.monotonic()
                assert (await guarded.client.infer(ORDINARY)).ok
                longest_s = max(longest_s, time.monotonic() - began)
            lines = len(guarded.events("library"))
        return longest_s, lines

    collector = Collector(hang=threading.Event() if fault == "hangs" else None)
    with collecting(collector) as address:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        where = address if fault == "hangs" else f"127.0.0.1:{free_port()}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://{where}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
        began = time.monotonic()
        longest_s, lines = asyncio.run(story())
        assert longest_s < 5.0
        assert lines < 50  # the SDK's complaints, few enough
        assert time.monotonic() - began < 60
        assert bool(collector.exports) is (fault == "hangs")


def test_what_cannot_be_set_up_is_said_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(**environment: str) -> tuple[Tracing | None, list[dict[str, Any]]]:
        stream = io.StringIO()

        async def story() -> Tracing | None:
            async with tracing(Log("info", stream), environment) as found:
                return found

        return asyncio.run(story()), [json.loads(line) for line in stream.getvalue().splitlines()]

    assert opened() == opened(OTEL_TRACES_EXPORTER="none") == (None, [])
    found, (line,) = opened(OTEL_TRACES_EXPORTER="zipkin")
    assert found is None
    assert line["event"] == "no traces"
    assert "'zipkin'" in line["cause"]
    found, lines = opened(OTEL_TRACES_EXPORTER="console")
    assert found is not None
    assert lines == []

    real = builtins.__import__

    def absent(name: str, *given: Any, **options: Any) -> Any:
        if name.startswith("opentelemetry.sdk"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *given, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    found, (line,) = opened(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4317")
    assert found is None
    assert "inference-guard[otel]" in line["warning"]


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "None", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_the_variables_turn_traces_on(environment: dict[str, str], *, wanted: bool) -> None:
    assert is_wanted(environment) is wanted


def test_a_fault_of_a_tracer_costs_spans_and_no_request() -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("a fault of the tracer")

    broken: Any = Broken()
    assert Tracing(broken, broken).begin(Traced("m", {}, ()), ago_s=0.0) is None
    assert REQUEST_SPAN.get() is None
    assert code_of(asyncio.CancelledError()) == "CancelledError"
