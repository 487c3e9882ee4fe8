"""CloudEvents to a sink: they are what the CloudEvents SDK would send, and no request waits for the sink."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.config import load_config
from guard.errors import ConfigError
from guard.serve.audit import event_sink
from guard.serve.audit.cloud_events import MAX_SENT_INPUT_BYTES, attributes, message, v2_request
from guard.serve.audit.events import tensor_fields
from tests import side
from tests.serve import tiny_bundle
from tests.serve.guarded import Guarded, free_port, guarding, until

EVENT = {
    "time": "2026-11-27T22:00:00.123Z",
    "action": "reject",
    "atlas": ["AML.T0015"],
    "id": "0123456789abcdef",
    "request_id": 'client "7" 100 %',
    "principal": "spiffe://cluster/ns/größe",
    "model": "digits:ü 2",
    "p_value": 0.001,
    "detectors": {"a": None},
}


@contextmanager
def sink(status: int = 200, *, hangs: threading.Event | None = None) -> Iterator[tuple[str, list[Any]]]:
    """A real HTTP server that keeps what it is sent; with `hangs` it answers once that is set."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            if hangs is not None:
                hangs.wait(30)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/events?to=audit", got
    finally:
        if hangs is not None:
            hangs.set()
        server.shutdown()
        server.server_close()


def test_events_equal_those_of_the_sdk() -> None:
    side.reach("cloudevents")
    from cloudevents.core.bindings.http import to_binary
    from cloudevents.core.formats.json import JSONFormat
    from cloudevents.core.v1.event import CloudEvent

    images = np.random.default_rng(0).random((1, 4, 4)).astype(np.float32)
    for more in ({}, {"message": 3}, {"input": tensor_fields(images)}):
        event = {**EVENT, **more}
        facts: dict[str, Any] = dict(attributes(event, source="/guard/pod 1", namespace="shop"))
        facts["time"] = datetime.fromisoformat(facts["time"])
        theirs = to_binary(CloudEvent(attributes=facts, data=v2_request(event)), JSONFormat())
        headers, body = message(event, source="/guard/pod 1", namespace="shop")
        wanted = {name.lower(): value for name, value in theirs.headers.items()}
        assert set(headers) == set(wanted)
        assert {name: value for name, value in headers.items() if name != "ce-time"} == {
            name: value for name, value in wanted.items() if name != "ce-time"
        }
        assert datetime.fromisoformat(headers["ce-time"]) == datetime.fromisoformat(wanted["ce-time"])
        assert body == theirs.body


def test_the_body_is_a_v2_request() -> None:
    images = np.random.default_rng(0).random((1, 4, 4)).astype(np.float32)
    (tensor,) = v2_request({**EVENT, "input": tensor_fields(images)})["inputs"]
    assert (tensor["shape"], tensor["datatype"]) == ([1, 1, 4, 4], "FP32")
    assert np.array_equal(np.asarray(tensor["data"], np.float32), images.ravel())
    assert v2_request(EVENT)["inputs"] == []
    large = np.zeros(MAX_SENT_INPUT_BYTES + 4, np.uint8)
    assert v2_request({**EVENT, "input": tensor_fields(large)})["inputs"] == []


def test_the_body_is_json_that_every_parser_reads() -> None:
    """NaN and the infinities, which JSON does not have, are null; the tensor has the name that the model gives it."""

    def refused(name: str) -> None:
        raise AssertionError(f"not JSON: {name}")

    images = np.asarray([[0.5, np.nan], [np.inf, -np.inf]], np.float32)
    event = {**EVENT, "p_value": float("nan"), "input_name": "pixels", "input": tensor_fields(images)}
    found = json.loads(message(event, source="/guard/pod", namespace="")[1], parse_constant=refused)
    (tensor,) = found["inputs"]
    assert (tensor["name"], tensor["data"]) == ("pixels", [0.5, None, None, None])
    facts = json.loads(found["parameters"]["guard_event"], parse_constant=refused)
    assert facts["p_value"] is None
    assert "input_name" not in facts


def test_each_event_is_posted_once(bundle: Path) -> None:
    asyncio.run(each_event_is_posted_once(bundle))


async def each_event_is_posted_once(bundle: Path) -> None:
    with sink() as (url, got):
        async with guarding(bundle, events_sink=url, events_namespace="shop", audit_inputs=True) as guarded:
            for number in range(3):
                assert (await guarded.client.infer(tiny_bundle.striped(), id=f"r{number}")).reason == "REJECTED"
            assert (await guarded.client.infer(tiny_bundle.clean(1))).ok
            await until(lambda: len(got) == 3)
            await written(guarded, 3)
    assert [path for path, _, _ in got] == ["/events?to=audit"] * 3
    bodies = [json.loads(body) for _, _, body in got]
    assert [body["id"] for body in bodies] == ["r0", "r1", "r2"]
    headers = got[0][1]
    assert headers["ce-type"] == "org.kubeflow.serving.inference.request"
    assert (headers["ce-inferenceservicename"], headers["ce-namespace"]) == (tiny_bundle.MODEL_NAME, "shop")
    values = np.asarray(bodies[0]["inputs"][0]["data"], np.float32)
    assert np.array_equal(values, tiny_bundle.striped().ravel())


async def written(guarded: Guarded, count: int) -> None:
    for _ in range(400):
        if await guarded.metric("guard_audit_written_total", of="sink") >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the events were never counted")


async def lost(guarded: Guarded, reason: str, count: int) -> None:
    for _ in range(400):
        if await guarded.metric("guard_audit_lost_total", of="sink", reason=reason) >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{reason} was never counted {count} times")


@pytest.mark.parametrize(("status", "reason"), [(500, "status"), (404, "status"), (None, "unreachable")])
def test_a_sink_that_refuses_costs_events_alone(bundle: Path, status: int | None, reason: str) -> None:
    asyncio.run(a_sink_that_refuses_costs_events_alone(bundle, status, reason))


async def a_sink_that_refuses_costs_events_alone(bundle: Path, status: int | None, reason: str) -> None:
    with sink(status or 200) as (url, _):
        there = url if status else f"http://127.0.0.1:{free_port()}/"
        async with guarding(bundle, events_sink=there) as guarded:
            for _ in range(2):
                assert (await guarded.client.infer(tiny_bundle.striped())).reason == "REJECTED"
            await lost(guarded, reason, 2)


def test_a_sink_that_hangs_holds_no_request(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_sink, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(event_sink, "MAX_WAITING_BYTES", 3 * event_sink.EVENT_BYTES)
    asyncio.run(a_sink_that_hangs_holds_no_request(bundle))


async def a_sink_that_hangs_holds_no_request(bundle: Path) -> None:
    with sink(hangs=threading.Event()) as (url, _):
        async with guarding(bundle, events_sink=url) as guarded:
            began = time.monotonic()
            for _ in range(20):
                assert (await guarded.client.infer(tiny_bundle.striped())).reason == "REJECTED"
            took_s = time.monotonic() - began
            await lost(guarded, "queue_full", 10)
            await lost(guarded, "timeout", 1)
    assert took_s < 20 * 1.0  # one that waited for the sink would take that long each


def test_a_connection_that_the_sink_closed_costs_nothing(bundle: Path) -> None:
    """The sink answers each connection once, says that it keeps it, and closes it."""
    listener = socket.create_server(("127.0.0.1", 0))
    got: list[bytes] = []

    def answer() -> None:
        for _ in range(3):
            connection, _ = listener.accept()
            with connection:
                got.append(connection.recv(1 << 20))
                connection.sendall(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()

    async def three() -> None:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with guarding(bundle, events_sink=url) as guarded:
            for number in range(3):
                await guarded.client.infer(tiny_bundle.striped())
                await written(guarded, number + 1)
            assert await guarded.metric("guard_audit_lost_total") == 0

    with listener:
        asyncio.run(three())
    thread.join(5)
    assert len(got) == 3


@pytest.mark.parametrize("url", ["sink", "ftp://host/", "http://", "http://host:99999/", "http://a b/", "http://u@h/"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="GUARD_EVENTS_SINK"):
        load_config(None, {"GUARD_EVENTS_SINK": url}, {})


@pytest.mark.parametrize("url", ["http://broker.svc.cluster.local/ns/default", "https://[::1]:8443/a?b=c"])
def test_a_sink_needs_no_port(url: str) -> None:
    assert load_config(None, {"GUARD_EVENTS_SINK": url}, {}).events_sink == url
