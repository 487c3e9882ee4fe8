"""Readings of a sample of traffic by the bundle under which it came, and whether it changes within itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.calibration import Calibration
from guard.cascade import JITTER_RISK, Readings, jitter
from guard.drift.monitor import DriftMonitor
from guard.drift.statistics import as_served
from guard.errors import DataError
from guard.fusion import Floats
from guard.near_copies import NearCopies, coarse_view, copy_distance, typical_distance
from guard.runtime import Runtime
from guard.traffic_sample import TrafficSample, shards_in

BATCH_ITEMS = 64
MAX_COMPARED_ITEMS = 512  # whose distances tell how near items of the sample are
SCALE_DIVISOR = 3  # one item in so many is for scales and tails
CHANGE_ALARM_RATE = 0.01  # the probability of refusing a sample that does not change within itself
REFERENCE_DIVISOR = 10  # the first item in so many is what the rest of the sample is compared with
MIN_REFERENCE_ITEMS = 50


@dataclass(frozen=True, eq=False)
class ReadShard:
    """A shard of a sample that was read once, by which it is found again."""

    file: Path
    identity: tuple[int, ...]
    first: int  # the number in the sample of its first item


@dataclass(frozen=True, eq=False)
class SampleReadings:
    """The parent's readings of a sample's items in their order of arrival, near-copies and unreadable ones left out."""

    scores: Floats  # [item, detector], all programs run
    logits: NDArray[np.float32]  # [item, class]
    risk: Floats  # [item]
    p_value: Floats  # [item]
    scale: NDArray[np.bool_]  # [item] whether it is for scales and tails; the others rank
    images: NDArray[np.int64]  # [item] its number in the sample
    repeats: int
    unreadable: int
    shards: tuple[ReadShard, ...] = ()  # in which the numbers count on
    gone: int = 0  # shards that were removed before they were read
    distance: float | None = None  # between two items, as `Nearness` has it; None for rows of a table

    @property
    def items(self) -> int:
        return len(self.risk)

    @property
    def not_counted(self) -> str:
        """Words for the items that were left out; empty where none were."""
        if not self.repeats and not self.unreadable:
            return ""
        return f" ({self.repeats} near-copies of earlier items and {self.unreadable} unreadable ones are not counted)"


def read_sample(runtime: Runtime, sample: TrafficSample) -> SampleReadings:
    """Read all items of a sample by the parent; near-copies of images and series count once. Raises DataError.

    What the guard that writes the store removes meanwhile is passed over, and counted.
    """
    copies, distance = None, runtime.calibration.typical_distance
    parts: list[tuple[NDArray[Any], ...]] = []
    shards: list[ReadShard] = []
    number = repeats = unreadable = gone = 0
    for _, file in shards_in(sample.folder):
        if (shard := sample.read(file)) is None:
            gone += 1
            continue
        shards.append(ReadShard(file, shard.identity, number))
        if copies is None and runtime.spec.axes.places:
            if distance is None:  # of an older bundle
                some = shard.items.images[:MAX_COMPARED_ITEMS]
                distance = typical_distance(coarse_view(runtime.spec.box.to_unit(some)))
            copies = NearCopies(np.random.default_rng(0), copy_distance(distance))
        for start in range(0, len(shard.items.images), BATCH_ITEMS):
            images = shard.items.images[start : start + BATCH_ITEMS]
            readings = runtime.read(images, complete=True)
            fresh = np.ones(len(images), dtype=np.bool_)
            if copies is not None:
                fresh = copies.fresh(coarse_view(runtime.spec.box.to_unit(images)))
            finite = np.isfinite(readings.scores).all(axis=1) & np.isfinite(readings.risk)
            repeats += int((~fresh).sum())
            unreadable += int((fresh & ~finite).sum())
            kept = fresh & finite
            scale = drawn_for_scale(images)
            numbers = number + np.arange(len(images))
            columns = (readings.scores, readings.logits, readings.risk, readings.p_value, scale, numbers)
            parts.append(tuple(column[kept] for column in columns))
            number += len(images)
    if number == 0:
        raise DataError(f"{sample.folder} holds no items")
    scores, logits, risk, p_value, scale, numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
    return SampleReadings(
        scores, logits, risk, p_value, scale, numbers, repeats, unreadable, tuple(shards), gone, distance
    )


def read_again(sample: TrafficSample, found: SampleReadings) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the shards of a sample that were read: the number of the first item, and the images [item, ...].

    Raises:
        DataError: a shard is gone or another one by now, so that its numbers would mean other items.
    """
    for known in found.shards:
        shard = sample.read(known.file)
        if shard is None or shard.identity != known.identity:
            raise DataError(
                f"{known.file} was removed or replaced between two readings: a guard is writing to {sample.folder}; "
                "copy the folder first, and calibrate from the copy"
            )
        yield known.first, shard.items.images


def drawn_for_scale(images: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell by the bytes of each item [item, ...] whether it is for scales and tails."""
    found: NDArray[np.bool_] = jitter(images) < JITTER_RISK / SCALE_DIVISOR
    return found


def check_unchanging(found: SampleReadings, calibration: Calibration, classes: int) -> float:
    """Return the evidence, as a power of ten, that the sample changes within itself. Raises DataError for an alarm."""
    first = max(MIN_REFERENCE_ITEMS, found.items // REFERENCE_DIVISOR)
    reference = replace(calibration, clean_risks=found.risk[:first], clean_scores=found.scores[:first], nearness=None)
    monitor = DriftMonitor(
        reference, classes, probability=CHANGE_ALARM_RATE, generator=np.random.default_rng(0), to_unit=None
    )
    scores = as_served(calibration, found.scores[first:], found.risk[first:])
    count = np.zeros(len(scores), dtype=np.int64)
    rest = Readings(found.logits[first:], scores, found.risk[first:], found.p_value[first:], count, scores)
    monitor.see(np.zeros((len(scores), 0)), rest)
    if (alarm := monitor.alarm) is not None:
        at = int(found.images[first + alarm.items - 1])
        raise DataError(
            f"the sample changes within itself: seen in {alarm.statistic} at its item {at}, with evidence "
            f"10^{alarm.log10_evidence:.1f} where 10^{monitor.threshold:.1f} is an alarm; it may hold a wave of "
            "attacks, which must not become what is normal. Look at what came then, and sample from calm traffic alone"
        )
    return max(monitor.log10_evidence.values())
