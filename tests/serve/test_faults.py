"""Faults, with real sockets and real processes: whoever is not at fault gets the right answer; readiness is true."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from numpy.typing import NDArray

from guard.cascade import Readings
from guard.runtime import Runtime
from guard.serve.grpc import upstream_watch
from guard.serve.grpc.wire.inference_pb2 import ServerLiveResponse, ServerReadyResponse
from guard.serve.log import Log
from guard.serve.metrics import ACTIONS
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import (
    PATIENCE_S,
    Client,
    Guarded,
    calling,
    config_for,
    free_port,
    guarding,
    infer_request,
    metric_of,
    until,
)
from tests.serve.processes import ROOT, guard_process, model_process
from tests.serve.sequences import kind, play

ORDINARY, BRIGHT = tiny_bundle.ordinary(1), tiny_bundle.bright(1)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def health(client: Client, service: str) -> int:
    answer = await client.call("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service=service))
    assert answer.ok
    return int(health_pb2.HealthCheckResponse.FromString(answer.body).status)


async def truth(client: Client) -> bool:
    """Whether the guard says it is ready; all of its ways to say so agree, and it is alive."""
    assert ServerLiveResponse.FromString((await client.call("ServerLive", b"")).body).live
    assert await health(client, "") == await health(client, "liveness") == SERVING
    ready = ServerReadyResponse.FromString((await client.call("ServerReady", b"")).body).ready
    for service in ("readiness", "inference.GRPCInferenceService"):
        assert await health(client, service) == (SERVING if ready else NOT_SERVING)
    return ready


async def until_truth(client: Client, *, wanted: bool) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while ServerReadyResponse.FromString((await client.call("ServerReady", b"")).body).ready is not wanted:
        assert time.monotonic() < deadline, f"readiness never became {wanted}"
        await asyncio.sleep(0.01)
    assert await truth(client) is wanted


def right(answer: Any, images: NDArray[np.float32]) -> bool:
    matrix, _ = tiny_bundle.weights()
    return answer.ok and np.allclose(
        answer.logits.reshape(len(images), -1), images.reshape(len(images), -1) @ matrix, atol=1e-4
    )


def test_the_guard_starts_long_before_the_upstream(bundle: Path) -> None:
    async def story() -> None:
        address = f"127.0.0.1:{free_port()}"
        async with (
            running(config_for(bundle, address), log=Log("error", io.StringIO())) as serving,
            calling(serving.address) as client,
        ):
            for _ in range(3):
                assert not await truth(client)
                answer = await client.infer(ORDINARY)
                assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_DOWN")
                assert (await client.infer(BRIGHT)).code is grpc.StatusCode.PERMISSION_DENIED  # it guards already
                assert (await client.call("ModelMetadata", b"\n\x04tiny")).code is grpc.StatusCode.UNAVAILABLE
            async with listening(FakeUpstream(), address):
                await until_truth(client, wanted=True)
                assert right(await client.infer(ORDINARY), ORDINARY)

    asyncio.run(story())


def test_a_model_server_process_is_killed_and_restarted(bundle: Path, tmp_path: Path) -> None:
    async def story() -> None:
        upstream = f"127.0.0.1:{free_port()}"
        with guard_process(config_for(bundle, upstream)) as guard:
            address = guard.until_event("listening")["inference"]
            async with calling(address) as client:
                assert not await truth(client)
                for _ in range(2):
                    with model_process(tmp_path, upstream) as model:
                        model.until_event("listening")
                        await until_truth(client, wanted=True)
                        assert right(await client.infer(ORDINARY), ORDINARY)
                        assert (await client.infer(BRIGHT)).code is grpc.StatusCode.PERMISSION_DENIED
                        model.kill()
                        await until_truth(client, wanted=False)
                        answer = await client.infer(ORDINARY)
                        assert answer.code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(story())


def test_a_log_that_nobody_reads_stops_no_call(bundle: Path, tmp_path: Path) -> None:
    """Each of these calls is a line in the log, and together they are three times what a pipe holds.

    Odd frames make gRPC's core write there by itself.
    """

    async def story() -> None:
        with model_process(tmp_path) as model:
            upstream = model.until_event("listening")["inference"]
            with guard_process(config_for(bundle, upstream)) as guard:
                addresses = guard.until_event("listening")
                async with calling(addresses["inference"]) as client:
                    await until_truth(client, wanted=True)
                    for _ in range(600):
                        answer = await client.infer(BRIGHT, timeout_s=PATIENCE_S)
                        assert answer.code is grpc.StatusCode.PERMISSION_DENIED
                    for number in range(80):
                        rng = Random(number)
                        await asyncio.to_thread(play, addresses["inference"], kind(number, rng), rng)
                    for _ in range(5):
                        assert right(await client.infer(ORDINARY, timeout_s=PATIENCE_S), ORDINARY)
                assert await metric_of(addresses["metrics"], "guard_log_lines_lost_total") == 0  # they wait
                guard.popen.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(guard.popen.wait, PATIENCE_S) == 0  # nor does it wait for a reader then

    asyncio.run(story())


def test_a_killed_upstream_is_noticed_although_nobody_calls(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the lost connection: the next question is far away."""
    monkeypatch.setattr(upstream_watch, "POLL_READY_S", 60 * PATIENCE_S)

    async def story() -> None:
        address = f"127.0.0.1:{free_port()}"
        async with running(config_for(bundle, address), log=Log("error", io.StringIO())) as serving:
            async with listening(FakeUpstream(), address):
                await until(lambda: serving.readiness.because is None)
            await until(lambda: serving.readiness.because is not None)

    asyncio.run(story())


def test_an_upstream_that_answers_garbage_is_not_ready_until_it_speaks_the_protocol(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            for method in ("ServerReady", "ModelReady", "ModelMetadata"):
                guarded.upstream.garbage = method
                await until(lambda: "Open Inference Protocol" in (guarded.serving.readiness.because or ""))
                guarded.upstream.garbage = None
                await guarded.until_ready()
                assert (await guarded.client.infer(tiny_bundle.ordinary(1))).ok

    asyncio.run(story())


def test_an_upstream_that_hangs_costs_the_client_his_deadline_and_the_guard_its_readiness(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, upstream_timeout_s=0.3) as guarded:
            guarded.upstream.hang = True
            began = time.monotonic()
            answer = await guarded.client.infer(ORDINARY, timeout_s=0.2)
            assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert time.monotonic() - began < PATIENCE_S / 2
            await until_truth(guarded.client, wanted=False)
            assert "did not answer within 0.3 s" in str(guarded.serving.readiness.because)
            await until(lambda: guarded.upstream.cancelled >= 1)
            guarded.upstream.hang = False
            await until_truth(guarded.client, wanted=True)
            assert right(await guarded.client.infer(ORDINARY), ORDINARY)

    asyncio.run(story())


def test_a_slow_model_server_is_waited_for_as_long_as_its_client_waits(bundle: Path) -> None:
    """The time for the inspection is none for the model server: a client without a deadline has none."""

    async def story() -> None:
        async with guarding(bundle, inspect_timeout_s=2.0) as guarded:
            guarded.upstream.hang_infer = True
            calls = [asyncio.create_task(guarded.client.infer(ORDINARY, timeout_s=None)) for _ in range(3)]
            await asyncio.wait(calls, timeout=3.0)
            assert not any(call.done() for call in calls)
            guarded.upstream.hang_infer = False
            assert all(right(answer, ORDINARY) for answer in await asyncio.gather(*calls))
            assert guarded.upstream.remaining == [None] * 3
            later = [
                guarded.client.infer(ORDINARY, timeout_s=None) for _ in range(20)
            ]  # it lately took longer than the budget
            assert all(right(answer, ORDINARY) for answer in await asyncio.gather(*later))

    asyncio.run(story())


@pytest.mark.parametrize("timeout_s", [None, PATIENCE_S])
@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_an_inspection_that_takes_too_long_has_failed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, on_failure: str, timeout_s: float | None
) -> None:
    """Within the budget of the inspection, whatever deadline the client has; then on_failure decides."""

    async def story() -> None:
        async with guarding(bundle, on_failure=on_failure, inspect_timeout_s=0.2) as guarded:
            gate = Gate(monkeypatch)
            first = await gate.occupy(guarded)
            began = time.monotonic()
            answer = await guarded.client.infer(ORDINARY, timeout_s=timeout_s)
            assert 0.15 < time.monotonic() - began < PATIENCE_S / 2
            if on_failure == "closed":
                assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "INSPECTION_TIMEOUT")
                assert "inspect_timeout_s" in answer.details
                assert guarded.upstream.requests == []
                assert await guarded.metric("guard_refused_total", reason="inspection_timeout") == 2
                assert guarded.events("refused")[0]["reason"] == "INSPECTION_TIMEOUT"
            else:
                assert right(answer, ORDINARY)
                assert answer.trailing["guard-verdict"] == "unchecked"
                assert await guarded.metric("guard_unchecked_total", model="tiny", reason="inspection_timeout") == 2
                assert guarded.events("unchecked")[0]["reason"] == "inspection_timeout"
            assert await guarded.metric("guard_dropped_total", reason="expired") >= 1  # it never reaches the device
            gate.opened.set()
            await first

    asyncio.run(story())


def test_a_client_that_leaves_is_followed_by_its_upstream_call(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            guarded.upstream.hang_infer = True
            call = asyncio.create_task(guarded.client.infer(ORDINARY))
            await until(lambda: guarded.upstream.calls.count("ModelInfer") == 1)
            call.cancel()
            await until(lambda: guarded.upstream.cancelled == 1)

    asyncio.run(story())


class Gate:
    """Holds Runtime.read until it is opened, so that a test decides what shares a batch; may fail on one item."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = threading.Event()
        self.opened = threading.Event()
        self.opened.set()
        self.poison: NDArray[np.float32] | None = None
        self.fail_all = False
        self.sizes: list[int] = []
        real: Callable[..., Readings] = Runtime.read

        def read(runtime: Runtime, images: NDArray[Any], **options: Any) -> Readings:
            self.sizes.append(len(images))
            if not self.opened.is_set():
                self.held.set()
                assert self.opened.wait(PATIENCE_S)
            if self.fail_all or (
                self.poison is not None and any(np.array_equal(image, self.poison) for image in images)
            ):
                raise RuntimeError("CUDA error: secret address 0xdead")
            return real(runtime, images, **options)

        monkeypatch.setattr(Runtime, "read", read)

    async def occupy(self, guarded: Guarded, *, timeout_s: float = PATIENCE_S) -> asyncio.Task[Any]:
        """A first request that holds the device, so that the next ones wait for each other."""
        self.held.clear()
        self.opened.clear()
        first = asyncio.create_task(guarded.client.infer(tiny_bundle.ordinary(1, seed=77), timeout_s=timeout_s))
        await until(self.held.is_set)
        self.sizes.clear()
        return first


async def until_queued(guarded: Guarded, rows: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := await guarded.metric("guard_queue_rows")) != rows:
        assert time.monotonic() < deadline, f"{found} rows are queued, not {rows}"
        await asyncio.sleep(0.01)


def test_one_client_process_of_a_batch_is_killed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            gate = Gate(monkeypatch)
            first = await gate.occupy(guarded)
            body = infer_request(tiny_bundle.ordinary(1, seed=5)).SerializeToString().hex()
            code = (
                "import sys, grpc; channel = grpc.insecure_channel(sys.argv[1]); "
                "channel.unary_unary('/inference.GRPCInferenceService/ModelInfer')(bytes.fromhex(sys.argv[2]))"
            )
            with subprocess.Popen([sys.executable, "-c", code, guarded.serving.address, body], cwd=ROOT) as doomed:
                await until_queued(guarded, 2)
                mates = [tiny_bundle.ordinary(2, seed=seed) for seed in (6, 7)]
                waiting = [asyncio.create_task(guarded.client.infer(images)) for images in mates]
                await until_queued(guarded, 10)
                doomed.kill()
                await asyncio.to_thread(doomed.wait)
            await until_queued(guarded, 8)  # the guard has noticed
            gate.opened.set()
            assert right(await first, tiny_bundle.ordinary(1, seed=77))
            for images, task in zip(mates, waiting, strict=True):
                assert right(await task, images)
            assert gate.sizes == [4]
            assert len(guarded.upstream.requests) == 3

    asyncio.run(story())


def test_a_cancelled_and_an_expired_client_leave_their_batch_mates_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            gate = Gate(monkeypatch)
            first = await gate.occupy(guarded)
            cancelled = asyncio.create_task(guarded.client.infer(tiny_bundle.ordinary(1, seed=5)))
            expired = asyncio.create_task(guarded.client.infer(tiny_bundle.ordinary(1, seed=6), timeout_s=1.5))
            mates = [tiny_bundle.ordinary(2, seed=seed) for seed in (7, 8)]
            waiting = [asyncio.create_task(guarded.client.infer(images)) for images in mates]
            await until_queued(guarded, 12)
            cancelled.cancel()
            assert (await expired).code is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: cancelled.done())
            assert (await guarded.client.call("ServerLive", b"")).ok  # after the cancellation on the same connection
            gate.opened.set()
            assert right(await first, tiny_bundle.ordinary(1, seed=77))
            for images, task in zip(mates, waiting, strict=True):
                assert right(await task, images)
            assert gate.sizes == [4]  # the dead never reached the device
            assert len(guarded.upstream.requests) == 3
            assert await guarded.metric("guard_dropped_total") == 2
            ended = {action: await guarded.metric("guard_requests_total", action=action) for action in ACTIONS}
            assert ended["cancelled"] == ended["expired"] == 1
            assert ended["pass"] == sum(ended.values()) - 2 == 3  # every request is in the books, once

    asyncio.run(story())


@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_the_engine_fails_in_one_batch(bundle: Path, monkeypatch: pytest.MonkeyPatch, on_failure: str) -> None:
    async def story() -> None:
        async with guarding(bundle, on_failure=on_failure) as guarded:
            gate = Gate(monkeypatch)
            first = await gate.occupy(guarded)
            poisoned = tiny_bundle.ordinary(1, seed=5)
            gate.poison = poisoned[0]
            faulty = asyncio.create_task(guarded.client.infer(poisoned))
            mates = [tiny_bundle.ordinary(2, seed=6), BRIGHT, tiny_bundle.ordinary(1, seed=7)]
            waiting = [asyncio.create_task(guarded.client.infer(images)) for images in mates]
            await until_queued(guarded, 10)
            gate.opened.set()
            assert right(await first, tiny_bundle.ordinary(1, seed=77))
            good, bad, other = await asyncio.gather(*waiting)
            assert right(good, mates[0])
            assert bad.code is grpc.StatusCode.PERMISSION_DENIED
            assert right(other, mates[2])
            answer = await faulty
            assert "secret" not in answer.details
            if on_failure == "closed":
                assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "UNCHECKED")
                assert len(guarded.upstream.requests) == 3
                assert await guarded.metric("guard_unchecked_total") == 0
                assert "secret" in guarded.events("refused")[0]["because"]
            else:
                assert right(answer, poisoned)
                assert answer.trailing["guard-verdict"] == "unchecked"
                assert await guarded.metric("guard_unchecked_total", model="tiny", reason="unchecked") == 1
                assert await guarded.metric("guard_items_total", action="unchecked") == 1
                assert len(guarded.events("unchecked")) == 1
            assert await guarded.metric("guard_engine_failures_total") >= 1
            assert await truth(guarded.client)  # the self-check passed: it was that input

    asyncio.run(story())


def test_an_engine_that_fails_for_good_is_not_ready_and_passes_nothing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            gate = Gate(monkeypatch)
            gate.fail_all = True
            assert (await guarded.client.infer(ORDINARY)).code is grpc.StatusCode.UNAVAILABLE
            await until_truth(guarded.client, wanted=False)
            for _ in range(3):
                assert (await guarded.client.infer(ORDINARY)).reason == "UNCHECKED"
            assert guarded.upstream.requests == []
            gate.fail_all = False
            await until_truth(guarded.client, wanted=True)
            assert right(await guarded.client.infer(ORDINARY), ORDINARY)

    asyncio.run(story())


def test_a_device_that_hangs_is_not_ready(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with guarding(bundle, inspect_timeout_s=2.0) as guarded:
            gate = Gate(monkeypatch)
            first = await gate.occupy(guarded, timeout_s=1.0)
            assert (await first).code is grpc.StatusCode.DEADLINE_EXCEEDED
            await until_truth(guarded.client, wanted=False)
            assert guarded.upstream.requests == []
            gate.opened.set()
            await until_truth(guarded.client, wanted=True)

    asyncio.run(story())


def test_load_is_shed_at_the_door(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with guarding(bundle, max_queue_rows=8) as guarded:
            gate = Gate(monkeypatch)
            first = await gate.occupy(guarded)
            inside = asyncio.create_task(guarded.client.infer(tiny_bundle.ordinary(4)))
            await until_queued(guarded, 8)
            answer = await guarded.client.infer(ORDINARY)
            assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            gate.opened.set()
            assert right(await first, tiny_bundle.ordinary(1, seed=77))
            assert right(await inside, tiny_bundle.ordinary(4))
            assert await guarded.metric("guard_refused_total", reason="overloaded") == 1

    asyncio.run(story())


def test_a_mismatched_upstream_is_not_served_and_the_difference_is_said(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            guarded.upstream.metadata.inputs[0].shape[:] = [-1, 3, 4, 4]
            await until_truth(guarded.client, wanted=False)
            assert "[-1, 3, 4, 4]" in str(guarded.serving.readiness.because)
            assert "[-1, 1, 4, 4]" in guarded.events("not ready")[-1]["because"]
            guarded.upstream.metadata.inputs[0].shape[:] = [-1, 1, 4, 4]
            await until_truth(guarded.client, wanted=True)

    asyncio.run(story())


def test_sigterm_drains(bundle: Path, tmp_path: Path) -> None:
    """Not ready at once, still serving for drain_s; the call in flight is answered; then the process ends well."""

    async def story() -> None:
        fake = FakeUpstream()
        async with listening(fake) as upstream:
            with guard_process(config_for(bundle, upstream, drain_s=2.0)) as guard:
                address = (await asyncio.to_thread(guard.until_event, "listening"))["inference"]
                async with calling(address) as client:
                    await until_truth(client, wanted=True)
                    fake.hang_infer = True
                    in_flight = asyncio.create_task(client.infer(ORDINARY))
                    await until(lambda: "ModelInfer" in fake.calls)
                    watch: Any = client.channel.unary_stream("/grpc.health.v1.Health/Watch")
                    watching = watch(health_pb2.HealthCheckRequest(service="readiness").SerializeToString())
                    states = aiter(watching)
                    assert health_pb2.HealthCheckResponse.FromString(await anext(states)).status == SERVING
                    guard.popen.send_signal(signal.SIGTERM)
                    assert health_pb2.HealthCheckResponse.FromString(await anext(states)).status == NOT_SERVING
                    assert not await truth(client)
                    assert not in_flight.done()
                    fake.hang_infer = False
                    assert right(await client.infer(ORDINARY), ORDINARY)
                    assert right(await in_flight, ORDINARY)
                    assert await asyncio.to_thread(guard.popen.wait, PATIENCE_S) == 0

    asyncio.run(story())
