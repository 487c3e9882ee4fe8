"""The risk of several detectors: rising in both tails, and heard from one alone where that one is alarmed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from guard.fusion import HINGE_DEVIATIONS, Fusion, Surprise, clean_knots, normal_scale, unfitted


def fused(seed: int) -> Fusion:
    """Any fusion that can be fitted: knots of skewed scores with ties, non-negative slopes."""
    generator = np.random.default_rng(seed)
    scores = np.stack(
        [generator.normal(size=150), generator.exponential(size=150) * 100, generator.integers(0, 3, 150)], axis=1
    ).astype(float)
    knots, levels = clean_knots(scores)
    alone = Surprise(np.quantile(scores, 0.9, axis=0), generator.exponential(size=3), 5.0, 20.0)
    return Fusion(knots, levels, generator.exponential(size=(3, 2, len(HINGE_DEVIATIONS))), -1.0, alone)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("detector", range(3))
@pytest.mark.parametrize("tail", [1.0, -1.0])
def test_risk_never_falls_when_a_score_moves_further_into_a_tail(seed: int, detector: int, tail: float) -> None:
    fusion = fused(seed)
    middle = np.median(fusion.knots, axis=1)
    spread = float(np.ptp(fusion.knots[detector])) or 1.0
    scores = np.tile(middle, (400, 1))
    scores[:, detector] += tail * spread * np.concatenate([np.linspace(0, 2, 300), np.logspace(0.4, 4, 100)])
    z = normal_scale(scores[:, detector], fusion.knots[detector], fusion.levels)
    beyond = tail * z >= 0  # a tail begins at the clean median
    risk = fusion.risk(scores)[beyond]
    assert beyond.sum() > 350
    assert (np.diff(risk) >= 0).all()
    assert risk[-1] > risk[-2] > risk[0], "and it never saturates"


def test_both_tails_count() -> None:
    fusion = unfitted(np.random.default_rng(0).normal(size=(500, 1)))
    low, middle, high = fusion.risk(np.asarray([[-6.0], [0.0], [6.0]]))
    assert min(low, high) > middle + 1


def test_the_furthest_detector_is_heard_where_it_is_more_alarmed_than_all_together() -> None:
    knots, levels = clean_knots(np.random.default_rng(0).normal(size=(500, 2)))
    deaf = Fusion(knots, levels, np.zeros((2, 2, len(HINGE_DEVIATIONS))), -3.0, Surprise.silent(2))
    alone = replace(deaf, surprise=Surprise(np.asarray([1.0, 2.0]), np.asarray([1.0, 0.5]), floor=-4.0, pace=2.0))
    scores = np.asarray([[0.0, 0.0], [3.0, 3.0], [3.0, 9.0], [1.2, -50.0], [-50.0, -50.0]])
    assert alone.risk(scores).tolist() == [-3.0, 0.0, 3.0, -3.0, -3.0]
    assert deaf.risk(scores).tolist() == [-3.0] * 5


def test_an_items_risk_depends_on_itself_alone() -> None:
    fusion = fused(1)
    scores = np.random.default_rng(2).normal(size=(20, 3)) * 3
    alone = np.concatenate([fusion.risk(scores[i : i + 1]) for i in range(20)])
    assert np.allclose(fusion.risk(scores), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 7.0, -1e4])
def test_a_score_that_was_always_the_same(value: float) -> None:
    knots, levels = clean_knots(np.full((50, 1), value))
    z = normal_scale(np.asarray([value, value + 1, value - 1]), knots[0], levels)
    assert abs(z[0]) < 1e-9 < z[1]
    assert z[2] < -1e-9


def test_normal_scale_is_the_clean_quantile() -> None:
    clean = np.random.default_rng(1).exponential(size=20_000)
    knots, levels = clean_knots(clean[:, None])
    z = normal_scale(clean, knots[0], levels)
    assert abs(z.mean()) < 0.05
    assert abs(z.std() - 1) < 0.1
