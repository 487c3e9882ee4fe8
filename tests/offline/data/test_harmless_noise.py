"""Harmless noise: its size, its grid, and that an item's own values decide what it gets."""

from __future__ import annotations

import numpy as np
import pytest

from guard.features import Feature
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import from_steps, on_grid
from guard.offline.data.harmless_noise import NOISES, NoiseKind, Sizes, each_noisy, noises_of, noisy
from guard.value_box import ValueBox

SHAPES = {"images": (3, 24, 24), "series": (2, 60), "vectors": (200,)}
CASES = [(kind, noise) for kind in SHAPES for noise in NOISES[kind]]
every_noise = pytest.mark.parametrize(("kind", "noise"), CASES, ids=lambda one: getattr(one, "name", one))


def items(kind: str, count: int = 12) -> np.ndarray:
    """Smooth grey values away from the box's ends, on a grid of 255 steps."""
    draws = np.random.default_rng(0)
    shape = SHAPES[kind]
    places = np.indices(shape).sum(axis=0) / sum(shape)
    values = 0.3 + 0.3 * places + 0.1 * draws.random((count, *(1,) * len(shape)))
    values = values + 0.02 * draws.standard_normal((count, *shape))
    return from_steps(np.rint(255 * values).astype(np.int64), 255)


def root_mean_square(moved: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(moved.astype(np.float64)).reshape(len(moved), -1).mean(axis=1))


@every_noise
@pytest.mark.parametrize("steps", [2, 4, 8, 16])
def test_a_size_means_the_same_whatever_the_kind(kind: str, noise: NoiseKind, steps: int) -> None:
    clean, size = items(kind), steps / 255
    found = root_mean_square(noisy(noise, clean, Sizes(size, size), None, 0) - clean)
    np.testing.assert_allclose(found, size / 3**0.5, rtol=0.1)


@every_noise
def test_noise_stays_in_the_box_and_on_the_grid(kind: str, noise: NoiseKind) -> None:
    clean = items(kind)
    clean = np.where(np.random.default_rng(1).random(clean.shape) < 0.2, np.float32(1), clean)
    moved = noisy(noise, clean, Sizes(1 / 255, 16 / 255), 255, 0)
    assert moved.dtype == np.float32
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert on_grid(moved, 255)
    assert all((one != other).any() for one, other in zip(moved, clean, strict=True))


@every_noise
def test_what_an_item_gets_follows_from_itself(kind: str, noise: NoiseKind) -> None:
    clean, sizes = items(kind), Sizes(1 / 255, 8 / 255)
    moved = noisy(noise, clean, sizes, 255, 0)
    np.testing.assert_array_equal(noisy(noise, clean[::-1].copy(), sizes, 255, 0)[::-1], moved)
    np.testing.assert_array_equal(noisy(noise, clean[4:5], sizes, 255, 0), moved[4:5])
    assert not np.array_equal(noisy(noise, clean, sizes, 255, 1), moved)


def test_sizes_are_drawn_from_one_step_to_the_largest_budget() -> None:
    assert Sizes.up_to(16 / 255, 255) == Sizes(1 / 255, 16 / 255)
    assert Sizes.up_to(None, 255) == Sizes(1 / 255, 8 / 255)
    assert Sizes.up_to(0.25, 16) == Sizes(1 / 16, 0.25)
    assert Sizes.up_to(None, 16) == Sizes(1 / 16, 1 / 16)
    assert Sizes.up_to(0.32, None) == Sizes(0.02, 0.32)
    clean = items("vectors", 300)
    sizes = root_mean_square(noisy(NOISES["vectors"][0], clean, Sizes(0.01, 0.16), None, 0) - clean) * 3**0.5
    assert sizes.min() < 0.012
    assert 0.14 < sizes.max() < 0.18
    assert abs((sizes < 0.04).mean() - 0.5) < 0.1


def test_kinds_take_turns() -> None:
    clean = items("images", 11)
    parts = list(each_noisy("images", clean, Sizes(2 / 255, 2 / 255), 255, 0))
    assert [len(part) for part in parts] == [3, 2, 2, 2, 2]
    assert [noise.name for noise in noises_of("images", 2)] == [
        "uniform",
        "Gaussian",
        "salt and pepper",
        "resize residue",
    ]


def test_of_a_table_only_numbers_that_may_change_move_in_steps_of_their_own() -> None:
    features = (
        Feature("age", "integer", 0.0, 100.0, step=1.0),
        Feature("height", "numeric", 0.0, 2.0),
        Feature("sex", "binary", 0.0, 1.0, categories=(0, 1)),
        Feature("born", "integer", 0.0, 100.0, step=1.0, immutable=True),
    )
    grid = FeatureGrid(features, ValueBox((0.0,) * 4, (100.0, 2.0, 1.0, 100.0), 1, "NC"))
    draws = np.random.default_rng(0)
    clean = grid.snap(draws.random((200, 4)).astype(np.float32))
    for noise in noises_of("tabular", 4):
        moved = noisy(noise, clean, Sizes(0.05, 0.05), grid, 0)
        assert grid.contains(moved)
        changed = (moved != clean).mean(axis=0)
        assert changed[0] > 0.5
        assert changed[1] > 0.9
        assert changed[2] == changed[3] == 0
        assert np.abs(moved - clean).max() < 0.2
