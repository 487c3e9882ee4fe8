"""Drift while serving: what the operator sees of it, that no request does, and that nothing waits for it."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from guard.bundle import Bundle
from guard.cascade import Readings
from guard.drift.monitor import DriftMonitor
from guard.drift.wealth import log10_evidence
from guard.runtime import Runtime
from guard.serve.drift_metrics import DriftMetrics
from guard.serve.drift_watch import HANDED_OVER_ITEMS, MAX_WAITING_BYTES, DriftWatch
from guard.serve.log import Log
from tests.serve import tiny_bundle
from tests.serve.guarded import Guarded, guarding

LABEL = tiny_bundle.MODEL_NAME


async def sent(guarded: Guarded, images: np.ndarray, size: int = 25) -> list[str]:
    answers = [await guarded.client.infer(images[start : start + size]) for start in range(0, len(images), size)]
    return [str(answer.trailing["guard-verdict"]) for answer in answers]


async def counted(guarded: Guarded, items: int) -> None:
    for _ in range(200):
        if await guarded.metric("guard_drift_items_total", model=LABEL) >= items:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the items were never counted")


def test_traffic_that_changes_is_told_once_and_no_verdict_changes(bundle: Path) -> None:
    asyncio.run(traffic_that_changes_is_told_once_and_no_verdict_changes(bundle))


async def traffic_that_changes_is_told_once_and_no_verdict_changes(bundle: Path) -> None:
    clean = tiny_bundle.clean(400, seed=40)
    brighter = (tiny_bundle.clean(600, seed=41) + np.float32(0.04)).clip(0, 1)
    async with guarding(bundle) as guarded:
        calm = await sent(guarded, clean)
        await counted(guarded, 400)
        assert await guarded.metric("guard_drift_alarm", model=LABEL) == 0
        assert await guarded.metric("guard_drift_evidence", model=LABEL, test="risk") < 2
        changed = await sent(guarded, brighter)
        await counted(guarded, 1000)
        assert await guarded.metric("guard_drift_alarm", model=LABEL) == 1
        (line,) = guarded.events("drift")
    assert line["level"] == "warning"
    assert line["model"] == LABEL
    assert 400 < line["items"] <= 1000
    assert line["log10_evidence"] >= 2
    async with guarding(bundle, drift_alarm_probability=None) as guarded:
        assert (calm, changed) == (await sent(guarded, clean), await sent(guarded, brighter))
        with pytest.raises(AssertionError, match="no metric"):
            await guarded.metric("guard_drift_evidence")
        assert guarded.events("drift") == []


def test_retries_count_once(bundle: Path) -> None:
    asyncio.run(retries_count_once(bundle))


async def retries_count_once(bundle: Path) -> None:
    images = tiny_bundle.clean(50, seed=42)
    async with guarding(bundle) as guarded:
        for _ in range(6):
            await sent(guarded, images)
        await sent(guarded, tiny_bundle.clean(50, seed=43))
        await counted(guarded, 100)
        assert await guarded.metric("guard_drift_repeats_total", model=LABEL) == 250


def test_what_the_operator_asks_about_is_no_traffic(bundle: Path) -> None:
    asyncio.run(what_the_operator_asks_about_is_no_traffic(bundle))


async def what_the_operator_asks_about_is_no_traffic(bundle: Path) -> None:
    from tests.serve.guarded import calling, infer_request

    async with guarding(bundle) as guarded, calling(guarded.serving.admin_address) as admin:
        message = infer_request(tiny_bundle.clean(100, seed=44)).SerializeToString()
        head = b"\x0a" + bytes([len(message) & 127 | 128, len(message) >> 7])  # field 1, its length in two bytes
        answer = await admin.call("/guard.v1.Guard/Inspect", head + message)
        assert answer.ok, answer.details
        await sent(guarded, tiny_bundle.clean(50, seed=45))
        await counted(guarded, 50)
        assert await guarded.metric("guard_drift_items_total", model=LABEL) == 50


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def watch(bundle: Path, registry: CollectorRegistry) -> DriftWatch:
    metrics = DriftMetrics(registry)
    log = Log("info", io.StringIO())
    watch = DriftWatch(Bundle.open(bundle), probability=0.01, label="m", metrics=metrics, log=log)
    watch.begin()
    return watch


def test_a_fault_ends_the_watch_and_nothing_else(
    watch: DriftWatch, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken")

    images = tiny_bundle.clean(HANDED_OVER_ITEMS)
    readings = Runtime.open(Bundle.open(bundle), threads=1).read(images)
    monkeypatch.setattr(watch.monitor, "see", broken)
    for _ in range(3):
        watch.see(images, readings)
    watch.thread.shutdown(wait=True)
    watch.see(images, readings)  # the bundle may be replaced meanwhile, too
    stream = watch.log.stream
    assert isinstance(stream, io.StringIO)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[-1]["event"] == "drift is no longer watched"
    assert watch.held_bytes == 0


def test_a_watch_that_falls_behind_drops_and_counts(
    watch: DriftWatch, registry: CollectorRegistry, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    monkeypatch.setattr(watch, "watch", lambda _: free.wait(10))
    images = tiny_bundle.clean(HANDED_OVER_ITEMS)
    readings = Runtime.open(Bundle.open(bundle), threads=1).read(images)
    large = np.broadcast_to(images[:1], (100_000, *images.shape[1:]))
    for _ in range(MAX_WAITING_BYTES // large.nbytes + 3):
        watch.see(large, readings)
    free.set()
    watch.close()
    assert watch.held_bytes <= MAX_WAITING_BYTES
    assert registry.get_sample_value("guard_drift_lost_items_total", {"model": "m"}) == 300_000
    watch.see(images, readings)  # after the bundle was replaced: nothing happens


def repeated(images: np.ndarray, count: int, values: int) -> np.ndarray:
    """As many items with these values each, which stand for large ones and take no memory."""
    return np.broadcast_to(images.reshape(-1)[:1], (count, values))


class Idle:
    """A monitor that only counts."""

    def __init__(self) -> None:
        self.items, self.repeats, self.alarm, self.largest_bytes = 0, 0, None, 0
        self.log10_evidence: dict[str, float] = {}

    def see(self, images: np.ndarray, readings: Readings) -> None:
        assert len(images) == len(readings.risk)
        self.items += len(images)
        self.largest_bytes = max(self.largest_bytes, images.nbytes)


@pytest.mark.parametrize(
    ("sizes", "values"),
    [
        ([64] * 20, 3 * 224 * 224),  # 37 MiB a request
        ([1] * 24 + [32] * 50, 3 * 224 * 224),  # what waits for a 25th item must not stand in the way of all
        ([16] * 10, 3 * 512 * 512),
        ([1] * 3, 20 << 20),  # an item of 80 MiB
    ],
)
def test_no_request_is_too_large(
    watch: DriftWatch, registry: CollectorRegistry, bundle: Path, sizes: list[int], values: int
) -> None:
    """Where the thread is not behind, nothing is lost, and the monitor sees slices."""
    watch.monitor = idle = Idle()  # type: ignore[assignment]
    images = tiny_bundle.clean(64)
    readings = Runtime.open(Bundle.open(bundle), threads=1).read(images)
    for size in sizes:
        watch.see(repeated(images, size, values), readings.rows(0, size))
        watch.thread.submit(lambda: None).result()
    watch.hand_over()
    watch.thread.shutdown(wait=True)
    assert idle.items == sum(sizes)
    assert idle.largest_bytes <= max(8 << 20, 4 * values)
    assert watch.held_bytes == watch.handed_over == 0
    assert registry.get_sample_value("guard_drift_lost_items_total", {"model": "m"}) == 0


def test_what_cannot_be_promised_is_said_and_nearly_only_near_copies_too(watch: DriftWatch, bundle: Path) -> None:
    images = np.repeat(tiny_bundle.clean(1), 500, axis=0)
    readings = Runtime.open(Bundle.open(bundle), threads=1).read(images)
    for _ in range(5):
        watch.see(images, readings)
    watch.thread.shutdown(wait=True)
    stream = watch.log.stream
    assert isinstance(stream, io.StringIO)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["drift not promised", "mostly near-copies"]


def test_a_loss_is_told_once(watch: DriftWatch, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(watch, "watch", lambda _: free.wait(10))
    images = tiny_bundle.clean(32)
    readings = Runtime.open(Bundle.open(bundle), threads=1).read(images)
    for _ in range(10):
        watch.see(repeated(images, 32, 3 * 224 * 224), readings)
    free.set()
    stream = watch.log.stream
    assert isinstance(stream, io.StringIO)
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events.count("drift items lost") == 1


def test_evidence_is_that_of_the_monitor(watch: DriftWatch, registry: CollectorRegistry, bundle: Path) -> None:
    images = tiny_bundle.clean(500, seed=46)
    watch.see(images, Runtime.open(Bundle.open(bundle), threads=1).read(images))
    watch.thread.shutdown(wait=True)
    monitor: DriftMonitor = watch.monitor
    assert monitor.items == registry.get_sample_value("guard_drift_items_total", {"model": "m"}) == 500
    shown = registry.get_sample_value("guard_drift_evidence", {"model": "m", "test": "kernel"})
    assert shown == pytest.approx(log10_evidence(monitor.kernel.log_wealth, len(monitor.tests)))


def test_another_bundle_begins_a_promise_anew(watch: DriftWatch, registry: CollectorRegistry, bundle: Path) -> None:
    images = tiny_bundle.bright(500) + np.random.default_rng(0).uniform(-0.2, 0, (500, *tiny_bundle.SHAPE))
    wire = images.clip(0, 1).astype(np.float32)
    watch.see(wire, Runtime.open(Bundle.open(bundle), threads=1).read(wire))
    watch.thread.shutdown(wait=True)
    assert registry.get_sample_value("guard_drift_alarm", {"model": "m"}) == 1
    counted = registry.get_sample_value("guard_drift_items_total", {"model": "m"})
    successor = DriftWatch(Bundle.open(bundle), probability=0.01, label="m", metrics=watch.metrics, log=watch.log)
    assert registry.get_sample_value("guard_drift_alarm", {"model": "m"}) == 1  # until it is at work
    successor.begin()
    assert registry.get_sample_value("guard_drift_alarm", {"model": "m"}) == 0
    assert registry.get_sample_value("guard_drift_items_total", {"model": "m"}) == counted
