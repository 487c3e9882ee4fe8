"""The drift monitor on a real bundle's readings: what it sees, what it promises, and that cuts do not matter."""

from __future__ import annotations

import numpy as np
import pytest

from guard.bundle import Bundle
from guard.calibration import Calibration
from guard.cascade import Readings, cascade_risk
from guard.drift.monitor import BLOCK_ITEMS, KERNEL, DriftMonitor
from guard.drift.statistics import CLASS, MARGIN, RISK, Statistics
from guard.fusion import unfitted
from guard.near_copies import Nearness
from guard.runtime import Runtime
from tests.serve import tiny_bundle


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    bundle = tiny_bundle.make(tmp_path_factory.mktemp("drift") / "bundle")
    return Runtime.open(Bundle.open(bundle.path), threads=1)


def monitor(runtime: Runtime, *, probability: float = 0.01, seed: int = 0, copies: bool = False) -> DriftMonitor:
    return DriftMonitor(
        runtime.calibration,
        tiny_bundle.CLASSES,
        probability=probability,
        generator=np.random.default_rng(seed),
        to_unit=runtime.spec.box.to_unit if copies else None,
    )


def test_it_watches_every_score_the_risk_and_the_answer(runtime: Runtime) -> None:
    assert monitor(runtime).tests == ("brightness", "roughness", RISK, MARGIN, CLASS, KERNEL)


def test_calibration_items_are_counted_as_serving_reads_them(runtime: Runtime) -> None:
    """The bins of items that the cascade reads are those in which calibration counted them, unless none ran there."""
    images = tiny_bundle.clean(tiny_bundle.ITEMS, seed=3)  # those the bundle is calibrated on
    statistics = Statistics(runtime.calibration, tiny_bundle.CLASSES)
    readings = runtime.read(images)
    bins = statistics.bins(readings.logits, readings.scores, readings.risk)
    width = statistics.counts().shape[1]
    counted = np.stack([np.bincount(row, minlength=width) for row in bins])
    off = np.abs(counted - statistics.counts())[:3].sum(axis=1) / 2
    assert (off <= 3).all()  # float32 scores at the edge of a bin
    assert statistics.counts()[3:].sum() == 0  # no answers to calibration items are known


def test_clean_traffic_raises_no_alarm_and_another_does(runtime: Runtime) -> None:
    watch = monitor(runtime)
    clean = tiny_bundle.clean(3000, seed=21)
    watch.see(clean, runtime.read(clean))
    assert watch.alarm is None
    assert watch.items == 3000
    brighter = (tiny_bundle.clean(1000, seed=22) + np.float32(0.05)).clip(0, 1)
    watch.see(brighter, runtime.read(brighter))
    assert watch.alarm is not None
    assert watch.alarm.statistic in ("brightness", RISK, KERNEL)
    assert 3000 < watch.alarm.items <= 3600
    assert watch.alarm.log10_evidence >= 2.0


def test_an_alarm_stays(runtime: Runtime) -> None:
    watch = monitor(runtime)
    bright = tiny_bundle.bright(500)
    watch.see(bright, runtime.read(bright))
    first = watch.alarm
    clean = tiny_bundle.clean(2000, seed=23)
    watch.see(clean, runtime.read(clean))
    assert first is not None
    assert watch.alarm is first


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("cut", [1, 7, 50, 333])
def test_cuts_do_not_matter(runtime: Runtime, cut: int, *, copies: bool) -> None:
    images = tiny_bundle.clean(400, seed=24)[np.random.default_rng(0).integers(400, size=400)]
    readings = runtime.read(images)
    whole, parts = monitor(runtime, copies=copies), monitor(runtime, copies=copies)
    whole.see(images, readings)
    for start in range(0, 400, cut):
        parts.see(images[start : start + cut], readings.rows(start, min(start + cut, 400)))
    assert parts.items == whole.items
    assert parts.log10_evidence == pytest.approx(whole.log10_evidence)
    assert (whole.repeats > 50) == copies
    assert whole.items == (400 - whole.repeats) // BLOCK_ITEMS * BLOCK_ITEMS if copies else 400


def test_repeats_alone_are_no_drift(runtime: Runtime) -> None:
    """A still camera: one picture, slightly noisy, a thousand times. Without the memory it is an alarm."""
    generator = np.random.default_rng(0)
    still = tiny_bundle.clean(1, seed=30) + generator.uniform(-0.004, 0.004, (1000, *tiny_bundle.SHAPE))
    images = still.clip(0, 1).astype(np.float32)
    readings = runtime.read(images)
    with_memory, without = monitor(runtime, copies=True), monitor(runtime)
    with_memory.see(images, readings)
    without.see(images, readings)
    assert with_memory.alarm is None
    assert with_memory.repeats >= 950
    assert without.alarm is not None


def test_the_whole_watch_keeps_its_promise_on_resampled_clean_traffic(runtime: Runtime) -> None:
    """100 runs, each with calibration items and stream of its own: at most the promised fifth alarm."""
    from dataclasses import replace

    images = tiny_bundle.clean(20_000, seed=25)
    pool = runtime.read(images, complete=True)
    served = runtime.read(images)
    alarms = 0
    for run in range(100):
        generator = np.random.default_rng(run)
        drawn = generator.permutation(20_000)[:1500]
        mine, stream = drawn[:500], drawn[500:]
        calibration = replace(runtime.calibration, clean_risks=pool.risk[mine], clean_scores=pool.scores[mine])
        watch = DriftMonitor(calibration, tiny_bundle.CLASSES, probability=0.2, generator=generator)
        watch.see(images[stream], taken(served, stream))
        alarms += watch.alarm is not None
    assert alarms <= 20


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_the_promise_holds_where_clean_data_have_near_copies(share: float) -> None:
    """A share of the items are blank frames, in calibration and stream alike: at most the promised fifth alarm."""
    alarms = 0
    for run in range(30):
        generator = np.random.default_rng(run)
        images, scores = mixture(600, share, generator)
        fusion = unfitted(mixture(500, share, generator)[1])
        risk = cascade_risk(0, fusion.risk(scores))
        clean = Calibration(("brightness",), (1,), (fusion,), (), risk, scores, Nearness.of(images))
        watch = DriftMonitor(clean, 2, probability=0.2, generator=generator, to_unit=lambda unit: unit)
        images, scores = mixture(1000, share, generator)
        risk = cascade_risk(0, fusion.risk(scores))
        logits = generator.standard_normal((1000, 2)).astype(np.float32)
        watch.see(images, Readings(logits, scores, risk, clean.p_value(risk), np.zeros(1000, np.int64), scores))
        alarms += watch.alarm is not None
    assert alarms <= 9  # of Binomial(30, 0.2) more have a probability of 6 %; without the mending 30 alarm


def mixture(items: int, share: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy frames [item, 1, 8, 8], of which a share is blank, and their brightness [item, 1]."""
    images = generator.random((items, 1, 8, 8)).astype(np.float32)
    blank = generator.random(items) < share
    images[blank] = 0.02 + 0.004 * generator.random((int(blank.sum()), 1, 8, 8)).astype(np.float32)
    return images, images.mean(axis=(1, 2, 3)).astype(float)[:, None] + 0.001 * generator.standard_normal((items, 1))


def taken(readings: Readings, index: np.ndarray) -> Readings:
    """The readings of the items of an index."""
    parts = (readings.logits, readings.scores, readings.risk, readings.p_value, readings.program, readings.detector_p)
    return Readings(*(part[index] for part in parts))


def test_memory_is_bounded(runtime: Runtime) -> None:
    watch = monitor(runtime, copies=True)
    images = tiny_bundle.clean(5000, seed=26)
    readings = runtime.read(images)
    sizes = []
    for _ in range(3):
        for start in range(0, 5000, 33):
            watch.see(images[start : start + 33], readings.rows(start, min(start + 33, 5000)))
        assert watch.waiting_items < BLOCK_ITEMS
        sizes.append(watch.ranks.counts.nbytes + watch.kernel.pool.nbytes + watch.martingale.seen.nbytes)
    assert sizes[2] < 200_000
