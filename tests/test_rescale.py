"""A fusion moved to other clean scores: what was as many deviations out gives the same risk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from guard.fusion import Scale, Surprise, unfitted
from guard.rescale import rescaled, score_at


def test_a_shift_and_a_stretch_leave_risks_where_they_were() -> None:
    generator = np.random.default_rng(0)
    clean = generator.normal(10, 2, (2000, 2))
    fusion = replace(unfitted(clean), surprise=Surprise(np.asarray([13.0, 0.0]), np.asarray([0.5, 0.0]), 0.2, 1.5))
    moved = rescaled(fusion, clean * 2 - 4)
    assert moved.surprise.starts[0] == pytest.approx(22.0, rel=1e-9)
    assert moved.surprise.slopes.tolist() == pytest.approx([0.25, 0.0])
    scores = generator.normal(10, 5, (500, 2))
    assert np.allclose(moved.risk(scores * 2 - 4), fusion.risk(scores))


def test_the_inverse_of_a_scale_holds_between_and_beyond_its_knots() -> None:
    scale = Scale.through(np.asarray([1.0, 2.0, 2.0, 5.0]), np.asarray([-1.0, 0.0, 0.5, 1.0]))
    scores = np.asarray([-7.0, 1.0, 1.7, 2.0, 4.0, 5.0, 90.0])
    assert score_at(scale, scale.place(scores)) == pytest.approx(scores)


def test_few_items_make_a_fusion_that_still_verifies() -> None:
    clean = np.random.default_rng(1).normal(0, 1, (20, 3))
    moved = rescaled(unfitted(np.random.default_rng(0).normal(0, 1, (500, 3))), clean)
    moved.verify(3)
