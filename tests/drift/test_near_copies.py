"""The memory of near-copies: what is found again, what is not, and that cuts do not matter."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.near_copies import MEMORY_ITEMS, NearCopies, Nearness, coarse_view, copy_distance


def pictures(items: int, seed: int = 0, size: int = 32) -> NDArray[np.float32]:
    """Smooth random pictures, no two alike."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((items, 3, 4, 4))
    return np.kron(coarse, np.ones((1, 1, size // 4, size // 4))).astype(np.float32)


def fresh(memory: NearCopies, images: NDArray[np.float32]) -> NDArray[np.bool_]:
    return memory.fresh(coarse_view(images))


def test_a_coarse_view_is_the_mean_of_each_field() -> None:
    picture = np.arange(10.0, dtype=np.float32).reshape(1, 1, 1, 10)
    assert coarse_view(picture).tolist() == [[0.0, 1.0, 2.0, 3.5, 5.0, 6.0, 7.0, 8.5]]
    halves = np.arange(16.0, dtype=np.float32).reshape(1, 1, 1, 16)
    assert coarse_view(halves).tolist() == [(np.arange(8) * 2 + 0.5).tolist()]
    assert coarse_view(np.zeros((2, 3, 200), dtype=np.float32)).shape == (2, 3 * 64)
    assert np.isfinite(coarse_view(np.full((1, 1, 8, 8), np.nan, dtype=np.float32))).all()


@pytest.mark.parametrize("noise", [0.0, 2 / 255, 8 / 255])
def test_retries_and_still_cameras_are_found(noise: float) -> None:
    images = pictures(200)
    memory = NearCopies(np.random.default_rng(1))
    assert fresh(memory, images).all()
    again = images + np.random.default_rng(2).uniform(-noise, noise, images.shape)
    assert not fresh(memory, again.astype(np.float32)).any()


def test_copies_within_one_request_count_once() -> None:
    images = pictures(3)
    found = fresh(NearCopies(np.random.default_rng(1)), images[[0, 0, 1, 0, 2, 1]])
    assert found.tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize("cut", [1, 7, 64, 500])
def test_cuts_do_not_matter(cut: int) -> None:
    generator = np.random.default_rng(0)
    images = pictures(300)[generator.integers(300, size=500)]
    whole, parts = NearCopies(np.random.default_rng(1)), NearCopies(np.random.default_rng(1))
    wanted = fresh(whole, images)
    found = [fresh(parts, images[start : start + cut]) for start in range(0, 500, cut)]
    assert np.array_equal(np.concatenate(found), wanted)
    assert np.allclose(whole.memory, parts.memory, atol=1e-5)


def test_memory_is_fixed_and_the_oldest_is_forgotten() -> None:
    memory = NearCopies(np.random.default_rng(1))
    first = pictures(1, seed=9)
    assert fresh(memory, first).all()
    for start in range(0, MEMORY_ITEMS, 1024):
        fresh(memory, pictures(1024, seed=start, size=8))
    assert fresh(memory, first).all()
    assert memory.memory.nbytes < 1_000_000


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
def test_data_that_fill_little_of_their_range_are_no_near_copies(scale: float) -> None:
    """Pictures of 12 bits in a box of 16, and heart beats of 1 mV in one of 10 mV either way."""
    images = (0.5 + scale * (pictures(300) - 0.5)).astype(np.float32)
    known = Nearness.of(images)
    assert known.fresh.all()
    memory = NearCopies(np.random.default_rng(1), copy_distance(known.distance))
    assert fresh(memory, images).all()
    noise = np.random.default_rng(2).uniform(-8 / 255, 8 / 255, images.shape).astype(np.float32)
    assert not fresh(memory, images + np.float32(min(scale, 0.5)) * noise).any()


def test_the_distance_is_at_most_the_usual_one_and_needs_no_bundle_that_knows() -> None:
    assert copy_distance(None) == copy_distance(0.5) == 0.02
    assert copy_distance(0.05) == pytest.approx(0.005)
    assert Nearness.of(pictures(1)).fresh.tolist() == [True]
    blank = np.concatenate([pictures(20), np.zeros((20, 3, 32, 32), np.float32)])
    known = Nearness.of((blank * 200).astype(np.uint8), lambda wire: wire.astype(np.float32) / 255)
    assert known.fresh.sum() == 21
    assert known.distance > 0.05
