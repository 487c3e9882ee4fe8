"""The cases that operators of such sidecars have met, each with the tests that hold the guard to it.

`CASES` lists, by the numbers of the collection that they were taken from, where each is tried. What stands nowhere else
is below: an upstream that is ready without its model (4), waves of overload (6), messages of 64 MiB (7), an open
failure mode that is loud and does not count who has left (25), and the inspection's own time by default (26).
"""

from __future__ import annotations

import ast
import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.config import ServeConfig
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from tests.layering import ROOT
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import config_for, guarding, infer_request, until
from tests.serve.processes import guard_process, model_process
from tests.serve.test_faults import Gate, right, until_queued

ORDINARY = tiny_bundle.ordinary(1)
LARGE_BYTES = 64 * 2**20
LARGE_MESSAGES = 12
WAVE_CALLS = 60
MOST_ROWS = 12
HELD_UP_S = 0.2
SMALL_CALL_S = 0.0003  # at least, of that thread

CASES: dict[int, tuple[str, ...]] = {
    2: (
        "tests/serve/test_faults.py::test_sigterm_drains",
        "tests/serve/test_draining.py::test_a_rolling_restart_loses_nothing",
        "tests/deploy/test_rendered_pod.py::test_a_rolling_restart_loses_nothing",
    ),
    4: ("tests/serve/test_field_cases.py::test_an_upstream_that_is_ready_without_its_model_is_not",),
    6: ("tests/serve/test_field_cases.py::test_the_third_wave_of_overload_meets_the_same_limits",),
    7: ("tests/serve/test_field_cases.py::test_large_messages_hold_no_health_check_up",),
    8: (
        "tests/serve/grpc/test_connection_limits.py::test_a_client_may_ask_during_a_long_call_whether_the_guard_is_there",
    ),
    9: (
        "tests/serve/grpc/test_connection_limits.py::test_a_connection_that_is_too_old_is_replaced_and_no_call_is_lost",
        "tests/serve/grpc/test_channel.py::test_each_address_gets_requests_in_turn_and_one_that_is_lost_no_more",
    ),
    10: (
        "tests/serve/grpc/test_tls.py::test_the_listeners_certificate_is_replaced_under_load",
        "tests/serve/grpc/test_tls.py::test_the_guards_own_certificate_is_replaced_under_load",
    ),
    11: ("tests/deploy/test_tls_component.py::test_kubelets_probe_the_port_that_never_speaks_tls",),
    12: (
        "tests/serve/test_threads.py::test_sessions_have_one_caller_and_share_the_rest",
        "tests/serve/test_threads.py::test_a_guard_process_follows_its_container",
    ),
    14: ("tests/bench/test_quick.py::test_it_runs_in_a_process_of_its_own",),  # memory and soak
    15: (
        "tests/serve/test_server.py::test_cuda_that_is_not_there_is_not_replaced_in_silence",
        "tests/serve/test_cuda.py::test_no_node_of_a_program_runs_on_the_cpu",
        "tests/serve/test_cuda.py::test_what_would_fall_back_is_refused",
    ),
    16: ("tests/serve/test_cuda.py::test_a_session_keeps_its_limit_of_memory_and_lives_on",),
    17: (
        "tests/serve/grpc/test_decode_properties.py::test_a_request_with_one_fault_is_refused",
        "tests/serve/grpc/test_decode_properties.py::test_what_is_accepted_is_what_protobuf_and_numpy_read",
        "tests/serve/grpc/test_fuzz_messages.py::test_what_is_accepted_is_what_a_model_server_reads",
    ),
    18: (
        "tests/serve/grpc/test_bypass.py::test_a_request_that_two_parsers_could_read_differently_is_refused",
        "tests/serve/test_modes.py::test_each_cell_says_what_happens",
    ),
    21: (
        "tests/serve/test_neighbours.py::test_a_guard_beside_one_of_them",
        "tests/serve/test_server.py::test_a_taken_port",
    ),
    23: (
        "tests/serve/envoy/test_envoy.py::test_streams_do_not_hang",
        "tests/serve/envoy/test_envoy.py::test_many_calls_at_once_are_checked_once_each",
    ),
    24: ("tests/serve/test_failure_table.py::test_each_cell_is_what_happens",),
    25: (
        "tests/serve/test_faults.py::test_the_engine_fails_in_one_batch",
        "tests/serve/test_field_cases.py::test_who_has_left_was_not_passed_unchecked",
    ),
    26: (
        "tests/serve/test_faults.py::test_an_inspection_that_takes_too_long_has_failed",
        "tests/serve/test_field_cases.py::test_a_device_that_hangs_costs_the_inspections_own_time_by_default",
    ),
    30: ("tests/serve/test_reload.py::test_a_change_of_the_file_is_noticed",),
    31: ("tests/serve/test_server.py::test_links_to_a_service_called_guard_are_warned_of_once",),
    32: ("tests/serve/test_tracing.py::test_no_client_sees_whether_it_is_traced",),
    36: ("tests/test_signing.py::test_what_a_mount_adds_is_reported_and_not_fatal",),
}


@pytest.mark.parametrize("case", CASES)
def test_each_case_names_tests_that_are_there(case: int) -> None:
    for where in CASES[case]:
        file, _, name = where.partition("::")
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, where


class WithoutModel(FakeUpstream):
    """A server as MLServer is with an empty list of models: ready, and it fails on the question for one."""

    has_model = False

    async def answer(self, method: str, request: bytes, context: Any) -> bytes:
        if method in ("ModelReady", "ModelMetadata") and not self.has_model:
            await context.abort(grpc.StatusCode.UNKNOWN, "Unexpected ModelNotFound: Model tiny not found")
        return await super().answer(method, request, context)


def test_an_upstream_that_is_ready_without_its_model_is_not(bundle: Path) -> None:
    async def story() -> None:
        fake = WithoutModel()
        fake.has_model = True
        async with guarding(bundle, fake) as guarded:
            fake.has_model = False
            await until(lambda: "Model tiny not found" in (guarded.serving.readiness.because or ""))
            assert "UNKNOWN" in (guarded.serving.readiness.because or "")
            fake.has_model = True
            await guarded.until_ready()

    asyncio.run(story())


def test_the_third_wave_of_overload_meets_the_same_limits(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that loses count in the first wave would let everything in from then on."""

    async def story() -> None:
        async with guarding(bundle, max_queue_rows=MOST_ROWS, max_rows=4) as guarded:
            gate = Gate(monkeypatch)
            for wave in range(3):
                gate.opened.clear()
                calls = [asyncio.create_task(guarded.client.infer(ORDINARY)) for _ in range(WAVE_CALLS)]
                for call in calls[::7]:
                    asyncio.get_running_loop().call_later(0.05, call.cancel)
                peak = 0.0
                for _ in range(20):
                    await asyncio.sleep(0.01)
                    peak = max(peak, await guarded.metric("guard_queue_rows"))
                gate.opened.set()
                ends = await asyncio.gather(*calls, return_exceptions=True)
                codes = [end.code.name for end in ends if not isinstance(end, BaseException)]
                assert 0 < peak <= MOST_ROWS, wave
                assert codes.count("RESOURCE_EXHAUSTED") > WAVE_CALLS / 3, (wave, codes)
                assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}, (wave, codes)
                assert right(await guarded.client.infer(ORDINARY), ORDINARY)

    asyncio.run(story())


@contextmanager
def asking(address: str, method: str, request: bytes) -> Iterator[list[float]]:
    """Call all the time from a thread; yields the list of how long each call took."""
    took: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.unary_unary(method)
            while not over.wait(0.01):
                began = time.monotonic()
                call(request, timeout=30)
                took.append(time.monotonic() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


@pytest.mark.alone
def test_large_messages_hold_no_health_check_up(bundle: Path, tmp_path: Path) -> None:
    """Judged by the processor time of the thread that answers, since waits are also the machine's.

    gRPC copies a message on that thread, piece by piece: 64 MiB hold everything up for as long as that takes.
    """
    message: ModelInferRequest = infer_request(ORDINARY)
    small = message.SerializeToString()
    message.raw_input_contents[0] = bytes(LARGE_BYTES)
    large = message.SerializeToString()
    limits = {"max_message_bytes": LARGE_BYTES + 2**20, "max_bytes_in_flight": 6 * LARGE_BYTES}
    with model_process(tmp_path) as model:
        upstream = model.until_event("listening")["inference"]
        with guard_process(config_for(bundle, upstream, **limits)) as guard:
            address = guard.until_event("listening")["inference"]
            guard.until_event("ready")
            with (
                grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel,
                asking(address, "/grpc.health.v1.Health/Check", b"") as health,
                asking(address, path("ModelInfer"), small) as others,
            ):
                before = main_thread_s(guard.popen.pid)
                infer: Any = channel.unary_unary(path("ModelInfer"))
                for _ in range(LARGE_MESSAGES):
                    with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):  # read whole, and no such tensor
                        infer(large, timeout=60)
                spent = main_thread_s(guard.popen.pid) - before - SMALL_CALL_S * (len(health) + len(others))
    assert min(len(health), len(others)) > LARGE_MESSAGES
    assert spent / LARGE_MESSAGES < HELD_UP_S


def main_thread_s(process: int) -> float:
    """The processor time of a process' first thread, which runs the event loop."""
    return int(Path(f"/proc/{process}/task/{process}/schedstat").read_text("ascii").split()[0]) / 1e9


def test_who_has_left_was_not_passed_unchecked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that leave during an inspection that then fails: cancelled, and no pass of an open guard."""

    async def story() -> None:
        async with guarding(bundle, on_failure="open") as guarded:
            gate = Gate(monkeypatch)
            first = await gate.occupy(guarded)
            leaving = [asyncio.create_task(guarded.client.infer(ORDINARY)) for _ in range(5)]
            staying = asyncio.create_task(guarded.client.infer(ORDINARY))
            await until_queued(guarded, 12)
            gate.fail_all = True
            for call in leaving:
                call.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            assert (await guarded.client.call("ServerLive", b"")).ok  # the cancellations have come
            gate.opened.set()
            assert (await staying).trailing["guard-verdict"] == "unchecked"
            await first
            counted = await guarded.metric("guard_requests_total", action="unchecked")
            assert counted == await guarded.metric("guard_unchecked_total") == len(guarded.upstream.requests) <= 2
            assert await guarded.metric("guard_requests_total", action="cancelled") == 5
            assert len(guarded.events("unchecked")) == counted

    asyncio.run(story())


def test_a_device_that_hangs_costs_the_inspections_own_time_by_default(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting of the time, no deadline of the client: there is an answer all the same."""

    async def story() -> None:
        async with guarding(bundle) as guarded:
            gate = Gate(monkeypatch)
            first = await gate.occupy(guarded)
            began = time.monotonic()
            answer = await guarded.client.infer(ORDINARY, timeout_s=None)
            assert time.monotonic() - began < 2 * ServeConfig().inspect_timeout_s
            assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "INSPECTION_TIMEOUT")
            gate.opened.set()
            await first

    asyncio.run(story())
