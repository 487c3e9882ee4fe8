"""Smoothed ranks: the law of their p-values, by hand on small cases and by count over all orders."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from guard.drift.ranks import StreamRanks


def test_the_example_of_the_file() -> None:
    ranks = StreamRanks(np.asarray([[5, 3, 1]]))
    assert ranks.p_values(np.asarray([[1]]), np.asarray([[0.5]])).tolist() == [[0.3]]
    assert ranks.counts.tolist() == [[5, 4, 1]]


def test_items_of_a_block_are_ranked_among_those_before_them() -> None:
    together, one = (StreamRanks(np.asarray([[2, 2, 0, 1], [0, 0, 0, 0]])) for _ in range(2))
    generator = np.random.default_rng(0)
    bins, random = generator.integers(4, size=(2, 40)), generator.random((2, 40))
    found = together.p_values(bins, random)
    alone = [one.p_values(bins[:, [item]], random[:, [item]]) for item in range(40)]
    assert np.array_equal(found, np.concatenate(alone, axis=1))
    assert np.array_equal(together.counts, one.counts)
    assert together.counts.sum(axis=1).tolist() == [45, 40]


def test_over_all_orders_p_values_are_exactly_uniform_and_independent() -> None:
    """Of five items, three calibrate: over all 120 orders the two p-values fill a 4 by 5 grid of cells evenly."""
    values = [0, 1, 2, 3, 4]
    cells = np.zeros((4, 5), dtype=int)
    for order in permutations(values):
        ranks = StreamRanks(np.bincount(order[:3], minlength=5)[None])
        first, second = ranks.p_values(np.asarray([order[3:]]), np.full((1, 2), 0.5))[0]
        cells[int(first * 4), int(second * 5)] += 1
    assert (cells == 6).all()


def test_ties_are_broken_at_random_so_that_one_bin_is_uniform() -> None:
    random = np.random.default_rng(0).random((1, 2000))
    found = StreamRanks(np.asarray([[7]])).p_values(np.zeros((1, 2000), dtype=np.int64), random)
    assert np.allclose(found, random)  # all are alike: what remains is the random number


@pytest.mark.parametrize("calibrated", [0, 3, 300])
def test_on_average_over_sets_p_values_are_uniform(calibrated: int) -> None:
    """400 streams with ties and few bins: each stretch of a stream is uniform within four standard errors."""
    generator = np.random.default_rng(calibrated)
    bins = np.minimum(generator.poisson(1.0, (400, calibrated + 60)), 5)
    counts = np.stack([np.bincount(row[:calibrated], minlength=6) for row in bins])
    found = StreamRanks(counts).p_values(bins[:, calibrated:], generator.random((400, 60)))
    for part in (found[:, :10], found[:, 50:]):
        for rate in (0.01, 0.1, 0.5):
            error = 4 * np.sqrt(rate * (1 - rate) / part.size)
            assert abs((part < rate).mean() - rate) < error
