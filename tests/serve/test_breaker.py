"""The circuit breaker: what opens it, what never does, and what callers, metrics, readiness and log see of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.errors import BreakerOpen
from guard.runtime import Runtime
from guard.serve.breaker import MIN_WINDOW_CHECKS, REMINDER_S, Breaker, BreakerEvent
from tests.serve import tiny_bundle
from tests.serve.guarded import PATIENCE_S, Guarded, guarding, until

ORDINARY, POISON = tiny_bundle.ordinary(1), tiny_bundle.ordinary(1, seed=5)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(*, most_in_a_row: int | None = 3, most_share: float = 0.5) -> tuple[Breaker, list[BreakerEvent], Clock]:
    events: list[BreakerEvent] = []
    clock = Clock()
    breaker = Breaker(most_in_a_row=most_in_a_row, most_share=most_share, clock=clock)
    breaker.listeners.append(events.append)
    return breaker, events, clock


def fails(breaker: Breaker, pattern: str) -> None:
    """Count inspections: "x" failed, "." ended well."""
    for sign in pattern:
        (breaker.failed if sign == "x" else breaker.succeeded)()


def test_it_opens_after_failures_in_a_row_that_the_self_check_confirms() -> None:
    breaker, events, _ = made()
    fails(breaker, "xx.xx")
    breaker.judge("broken")
    assert not breaker.is_open
    fails(breaker, "x")
    breaker.judge("broken")
    assert events == ["breaker open"]
    with pytest.raises(BreakerOpen):
        breaker.check()


def test_what_the_self_check_does_not_confirm_never_opens_it() -> None:
    breaker, events, _ = made()
    for _ in range(50):
        fails(breaker, "xxxxx")
        assert breaker.is_suspect
        breaker.judge(None)
        assert not breaker.is_suspect
    assert events == []
    breaker.check()


def test_it_opens_by_the_share_of_the_last_inspections() -> None:
    breaker, events, _ = made(most_in_a_row=10**6)
    fails(breaker, "x." * (MIN_WINDOW_CHECKS // 2 - 1))
    assert not breaker.is_suspect  # too few to tell a share
    fails(breaker, ".x")
    assert breaker.is_suspect
    breaker.judge("broken")
    assert events == ["breaker open"]


def test_it_closes_with_the_first_self_check_that_passes_and_begins_anew() -> None:
    breaker, events, clock = made()
    fails(breaker, "xxx")
    breaker.judge("broken")
    clock.now += 5
    assert breaker.open_s() == 5
    breaker.judge(None)
    assert events == ["breaker open", "breaker closed"]
    breaker.check()
    fails(breaker, "xx")
    assert not breaker.is_suspect


def test_while_it_is_open_that_is_told_again_and_again() -> None:
    breaker, events, clock = made()
    fails(breaker, "xxx")
    for _ in range(100):
        breaker.judge("broken")
        clock.now += REMINDER_S / 10
    assert events == ["breaker open", *["breaker still open"] * 9]


def test_without_a_number_it_never_opens() -> None:
    breaker, events, _ = made(most_in_a_row=None)
    fails(breaker, "x" * 200)
    breaker.judge("broken")
    assert not breaker.is_open
    assert events == []


def test_clients_that_leave_count_only_where_the_engine_is_known_to_be_broken() -> None:
    breaker, _, _ = made()
    for _ in range(10):
        breaker.left()
    assert not breaker.is_suspect
    breaker.judge("the device has not answered for 5 s")
    for _ in range(3):
        breaker.left()
    assert breaker.is_suspect


class Device:
    """A device that a test breaks: it raises, hangs, or fails on one input."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lost = self.poisoned = False
        self.free = threading.Event()
        self.free.set()
        for name in ("read", "self_check"):
            monkeypatch.setattr(Runtime, name, self.wrapped(getattr(Runtime, name)))

    def wrapped(self, real: Any) -> Any:
        def run(runtime: Runtime, *given: Any, **options: Any) -> Any:
            assert self.free.wait(PATIENCE_S)
            if self.lost or (self.poisoned and given and (given[0] == POISON).all(axis=(1, 2, 3)).any()):
                raise RuntimeError("CUDA error: the device was lost")
            return real(runtime, *given, **options)

        return run


async def opened(guarded: Guarded, images: Any = ORDINARY, **options: Any) -> None:
    """Send requests until the breaker is open."""
    until_s = time.monotonic() + PATIENCE_S
    while not guarded.events("breaker open"):
        assert time.monotonic() < until_s
        await guarded.client.infer(images, **options)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_a_lost_device_opens_it_and_a_device_that_is_back_closes_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, on_failure: str
) -> None:
    device = Device(monkeypatch)

    async def story() -> None:
        async with guarding(bundle, on_failure=on_failure) as guarded:
            assert await guarded.metric("guard_breaker_open", model="tiny") == 0
            device.lost = True
            await opened(guarded)
            (line,) = guarded.events("breaker open")
            assert (line["level"], line["model"]) == ("error", "tiny")
            assert "device was lost" in line["because"]
            assert await guarded.metric("guard_breaker_open", model="tiny") == 1
            assert await guarded.metric("guard_breaker_openings_total", model="tiny") == 1
            assert "self-check" in str(guarded.serving.readiness.of("tiny"))
            answer = await guarded.client.infer(ORDINARY)
            if on_failure == "closed":
                assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "BREAKER_OPEN")
                assert answer.trailing["grpc-retry-pushback-ms"] == "-1"
                assert guarded.upstream.requests == []
                assert await guarded.metric("guard_refused_total", reason="breaker_open") >= 1
            else:
                assert answer.ok
                assert answer.trailing["guard-verdict"] == "unchecked"
                assert await guarded.metric("guard_unchecked_total", model="tiny", reason="breaker_open") >= 1
            device.lost = False
            await until(lambda: bool(guarded.events("breaker closed")))
            await guarded.until_ready()
            assert (await guarded.client.infer(ORDINARY)).trailing["guard-verdict"] == "pass"
            assert (await guarded.client.infer(tiny_bundle.bright(1))).code is grpc.StatusCode.PERMISSION_DENIED
            assert await guarded.metric("guard_breaker_open", model="tiny") == 0

    asyncio.run(story())


def test_one_clients_bad_input_opens_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    device.poisoned = True

    async def story() -> None:
        async with guarding(bundle, breaker_failures=2) as guarded:
            for _ in range(60):
                assert (await guarded.client.infer(POISON)).reason == "UNCHECKED"
                await asyncio.sleep(0.01)  # the watcher comes to it several times
            assert (await guarded.client.infer(ORDINARY)).ok
            assert guarded.events("breaker open") == []
            assert guarded.serving.readiness.because is None

    asyncio.run(story())


@pytest.mark.parametrize("timeout_s", [PATIENCE_S, 0.05], ids=["patient clients", "impatient clients"])
def test_nobody_waits_for_a_device_that_hangs(bundle: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float) -> None:
    """Those that wait when it opens are told at once, and those that come later do not begin to wait."""
    device = Device(monkeypatch)

    async def story() -> None:
        async with guarding(bundle, inspect_timeout_s=2.0, breaker_failures=2) as guarded:
            device.free.clear()
            await opened(guarded, timeout_s=timeout_s)
            answers = await asyncio.gather(*(guarded.client.infer(ORDINARY) for _ in range(20)))
            assert {answer.reason for answer in answers} == {"BREAKER_OPEN"}
            assert guarded.upstream.requests == []
            device.free.set()
            await guarded.until_ready()
            assert (await guarded.client.infer(ORDINARY)).ok

    asyncio.run(story())


def test_what_waits_when_it_opens_is_told_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)

    async def story(calls: Sequence[int] = range(6)) -> None:
        async with guarding(bundle, inspect_timeout_s=1.0, breaker_failures=2) as guarded:
            device.free.clear()
            first = [asyncio.create_task(guarded.client.infer(ORDINARY)) for _ in range(2)]
            await asyncio.sleep(0.8)
            later = [asyncio.create_task(guarded.client.infer(ORDINARY)) for _ in calls]
            reasons = [answer.reason for answer in await asyncio.gather(*first, *later)]
            assert reasons == ["INSPECTION_TIMEOUT"] * 2 + ["BREAKER_OPEN"] * len(calls)
            device.free.set()

    asyncio.run(story())


def test_readiness_follows_it_only_where_the_operator_wants(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)

    async def story() -> None:
        async with guarding(bundle, on_failure="open", breaker_readiness=False) as guarded:
            device.lost = True
            await opened(guarded)
            assert guarded.serving.readiness.because is None
            assert (await guarded.client.infer(ORDINARY)).trailing["guard-verdict"] == "unchecked"

    asyncio.run(story())
