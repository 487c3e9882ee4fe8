"""What metrics tell of inspections: their time and its budget, detectors without a score, the bundle behind them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from guard.cascade import Readings
from guard.serve.inspection_metrics import InspectionMetrics
from tests.bench.day_parts import make_bundle
from tests.serve import tiny_bundle
from tests.serve.guarded import guarding

MODEL = tiny_bundle.MODEL_NAME
NO_NUMBER = np.nan


@pytest.mark.parametrize(
    ("program", "detector_p", "silent"),
    [
        ([1, 1], [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], [0, 0, 0]),
        ([0, 1], [[0.5, NO_NUMBER, NO_NUMBER], [0.5, 0.5, 0.5]], [0, 0, 0]),  # the first is decided before they run
        ([0, 1], [[NO_NUMBER, NO_NUMBER, NO_NUMBER], [0.5, NO_NUMBER, 0.5]], [1, 1, 0]),
        ([1, 1], [[0.5, 0.5, NO_NUMBER], [0.5, 0.5, NO_NUMBER]], [0, 0, 2]),
    ],
    ids=["all speak", "decided early", "one of each", "one is silent"],
)
def test_a_detector_is_silent_only_where_it_ran(
    program: list[int], detector_p: list[list[float]], silent: list[int]
) -> None:
    """One program has one detector, the next two; a score of the model's answer, behind them, is none of theirs."""
    registry = CollectorRegistry()
    metrics = InspectionMetrics(registry)
    names = ("a", "b", "c", "answer")
    metrics.begin("m", names)
    of_answer = np.asarray([*np.asarray(detector_p).T, [NO_NUMBER, 0.5]]).T
    zero = np.zeros(2)
    readings = Readings(np.zeros((2, 3), np.float32), of_answer, zero, zero, np.asarray(program), of_answer)
    metrics.count_silent("m", names, readings, (1, 2))
    found = [
        registry.get_sample_value("guard_detector_silent_items_total", {"model": "m", "detector": name})
        for name in names
    ]
    assert found == [*silent, 0]


def test_an_item_without_a_score_is_rejected_and_counted(tmp_path: Path) -> None:
    """A detector that divides by its own score has none for one grey: no way past the guard."""
    make_bundle(tmp_path / "bundle")

    async def story() -> None:
        async with guarding(tmp_path / "bundle") as guarded:
            assert (await guarded.client.infer(tiny_bundle.ordinary(3))).ok
            answer = await guarded.client.infer(np.full((2, *tiny_bundle.SHAPE), 0.5, np.float32))
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED
            for detector, count in (("brightness", 0), ("roughness", 2)):
                silent = await guarded.metric("guard_detector_silent_items_total", model=MODEL, detector=detector)
                assert silent == count

    asyncio.run(story())


def test_the_time_of_an_inspection_counts_where_there_was_a_verdict(bundle: Path) -> None:
    async def story() -> None:
        began = time.time()
        async with guarding(bundle, inspect_timeout_s=7.0) as guarded:
            assert await guarded.metric("guard_inspection_seconds_count", model=MODEL) == 0
            for images, count in ((tiny_bundle.ordinary(1), 1), (tiny_bundle.bright(1), 2)):
                await guarded.client.infer(images)
                assert await guarded.metric("guard_inspection_seconds_count", model=MODEL) == count
            assert not (await guarded.client.infer(tiny_bundle.ordinary(1)[:, :, :2])).ok  # of another shape
            assert await guarded.metric("guard_inspection_seconds_count", model=MODEL) == 2
            assert 0 < await guarded.metric("guard_inspection_seconds_sum", model=MODEL) < 7
            assert await guarded.metric("guard_inspection_budget_seconds", model=MODEL) == 7
            assert await guarded.metric("guard_calibration_items", model=MODEL) == tiny_bundle.ITEMS
            loaded = await guarded.metric("guard_bundle_loaded_timestamp_seconds", model=MODEL)
            assert began <= loaded <= time.time()

    asyncio.run(story())


def test_failing_closed_and_passing_unchecked_begin_at_zero(bundle: Path) -> None:
    """An alert sees the first of them only as a rise from a count that is there."""

    async def story() -> None:
        async with guarding(bundle) as guarded:
            for reason in ("unchecked", "overloaded", "inspection_timeout", "breaker_open"):
                assert await guarded.metric("guard_refused_total", reason=reason) == 0
                assert await guarded.metric("guard_unchecked_total", model="other", reason=reason) == 0

    asyncio.run(story())
