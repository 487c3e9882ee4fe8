"""Intervals that cover, rates that are promised or not stated, and bands that bite."""

from __future__ import annotations

import numpy as np
import pytest

from guard.offline.findings.intervals import Area, Promise, Rate, caught_at


def test_an_area_is_the_share_of_pairs() -> None:
    area = Area.between(np.asarray([1.0, 2.0, 3.0]), np.asarray([2.0, 4.0]))
    assert area.value == pytest.approx((1.5 + 3) / 6)
    assert 0 <= area.low < area.value < area.high <= 1


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0, 3.0])
def test_its_interval_covers_the_truth(shift: float) -> None:
    """Normal scores, of which the true AUROC is known; 93 to 100 % of 600 draws, and no wider than it need be."""
    from statistics import NormalDist

    truth, generator = NormalDist().cdf(shift / np.sqrt(2)), np.random.default_rng(3)
    areas = [Area.between(generator.normal(size=300), generator.normal(shift, size=60)) for _ in range(600)]
    covered = np.mean([area.low <= truth <= area.high for area in areas])
    assert 0.93 <= covered <= 0.995
    assert np.mean([area.high - area.low for area in areas]) < (0.2 if shift < 2 else 0.12)


def test_it_covers_where_half_the_attacked_items_look_clean() -> None:
    generator = np.random.default_rng(4)
    hits = 0
    for _ in range(400):
        attacked = np.where(generator.random(80) < 0.5, 99.0, generator.normal(size=80))
        area = Area.between(generator.normal(size=500), attacked)
        hits += area.low <= 0.75 <= area.high
    assert hits >= 0.93 * 400


def test_full_separation_is_not_certainty() -> None:
    area = Area.between(np.arange(500.0), np.arange(1000.0, 1200.0))
    assert area.value == area.high == 1.0
    assert 0.98 < area.low < 0.996
    worst = Area.between(np.arange(1000.0, 1200.0), np.arange(500.0))
    assert (worst.value, worst.low) == (0.0, 0.0)
    assert worst.high < 0.02


def test_of_nothing_it_says_nothing() -> None:
    area = Area.between(np.arange(5.0), np.zeros(0))
    assert np.isnan(area.value)
    assert (area.low, area.high) == (0.0, 1.0)


def test_a_rate_that_cannot_be_promised_is_not_stated() -> None:
    promises = [Promise.of(rate, 60) for rate in (0.01, 0.05)]
    assert promises[0].reason is not None
    assert "it takes 99" in promises[0].reason
    assert promises[1].reason is None
    p_values = np.asarray([0.004, 0.05, 0.051, 0.9])
    assert caught_at(promises, p_values) == {0.01: None, 0.05: Rate.of(np.asarray([True, True, False, False]))}
