"""The calibration of a closed model's answers: shares of the rate, and the file's own example."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.offline.training.answer_calibration import ANSWER_RATE_SHARE, line_between, tail_of

Floats = NDArray[np.float64]


def exponential(items: int, *, start: float, length: float, seed: int) -> Floats:
    """Values of which the largest tenth lie beyond `start`, by `length` on average."""
    generator = np.random.default_rng(seed)
    return start + length * (generator.exponential(size=items) - np.log(10))


def test_the_example_at_the_files_head() -> None:
    """Values whose tails are exactly those of the example."""
    steps = np.concatenate([np.full(900, -1.0), [-1e-9], np.linspace(0, 2, 101)[1:]])  # a tenth beyond 0, by 1
    risk, score = 2.0 + 0.5 * steps, 0.3 + 0.2 * steps
    start, length = tail_of(score)
    assert (start, length) == (pytest.approx(0.3, abs=1e-3), pytest.approx(0.2, rel=0.02))
    floor, pace = line_between(risk, score)
    assert floor + pace * 0.3 == pytest.approx(2.0 + 0.5 * np.log(0.3 / 0.7), abs=0.02)
    assert pace * 0.2 == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_the_answer_takes_its_share_of_the_rate_from_fresh_clean_items(rate: float) -> None:
    """Of the clean items that the whole risk rejects, three tenths are the answer's."""
    line = line_between(
        exponential(20_000, start=2.0, length=0.5, seed=0), exponential(20_000, start=0.3, length=0.2, seed=1)
    )
    risk = exponential(400_000, start=2.0, length=0.5, seed=2)
    own = line[0] + line[1] * exponential(400_000, start=0.3, length=0.2, seed=3)
    threshold = np.quantile(np.maximum(risk, own), 1 - rate)
    assert (own > threshold).mean() / rate == pytest.approx(ANSWER_RATE_SHARE, abs=0.06)
    assert (risk > threshold).mean() / rate == pytest.approx(1 - ANSWER_RATE_SHARE, abs=0.06)


@pytest.mark.parametrize("score", [np.zeros(300), np.full(300, 1e-9)], ids=["nought", "next to nought"])
def test_a_student_that_never_differs_gives_a_line_that_can_be_used(score: Floats) -> None:
    risk = exponential(300, start=2.0, length=0.5, seed=4)
    floor, pace = line_between(risk, score)
    assert np.isfinite([floor, pace]).all()
    assert pace > 0
    assert floor + pace * 0.0 < np.quantile(risk, 0.95)  # an answer that agrees rejects nothing
    assert floor + pace * 3.0 > risk.max()  # one that does not agree is the riskiest


def test_programs_that_say_the_same_of_all_leave_answers_on_one_level() -> None:
    floor, pace = line_between(np.full(300, 1.5), exponential(300, start=0.3, length=0.2, seed=5))
    assert (floor, pace) == (1.5, 0.0)
