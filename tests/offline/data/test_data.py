"""Splits by content hash, and the data's grid."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from guard.errors import ConfigError, DataError
from guard.offline.data.grid import from_steps, grid_of, on_grid, snap, snap_within, whole_steps
from guard.offline.data.splits import SHARES, Split, assign, content_hash, content_hashes, members
from guard.offline.job.job import WHOLE


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def hashes(count: int) -> list[str]:
    return [content_hash(np.array([number])) for number in range(count)]


def test_hash_tells_content_dtype_and_shape_apart():
    image = rng().integers(0, 255, (4, 6, 1)).astype(np.uint8)
    changed = image.copy()
    changed[3, 5, 0] ^= 1
    others = [changed, image.astype(np.float32), image.view(np.int8), image.reshape(6, 4, 1), image[..., 0]]
    assert len({content_hash(other) for other in [image, *others]}) == 6


def test_hash_does_not_tell_memory_layout_or_byte_order_apart():
    image = rng().random((3, 4, 5)).astype("<f4")
    assert content_hash(image) == content_hash(np.asfortranarray(image)) == content_hash(image.astype(">f4"))
    assert content_hash(image) == content_hash(np.repeat(image, 2, axis=2)[:, :, ::2])
    assert content_hashes(image[None])[0] == content_hash(image)


def test_hash_is_this_one_for_ever():
    assert (
        content_hash(np.arange(4, dtype=np.uint8)) == "538df0e268ab873845d3a82743e1046704c8904b84b8feefdde922313421ef32"
    )


def test_hash_refuses_what_is_no_number():
    with pytest.raises(DataError, match="object"):
        content_hash(np.array([object()]))


def test_an_items_split_depends_on_no_other_item():
    every = hashes(300)
    splits = assign(every)
    for some in (every[::-1], every[:7], every[5:6], every[3:9] * 2):
        assert assign(some) == {one: splits[one] for one in some}


def test_shares_are_kept_within_chance_and_every_split_is_independent_of_the_last_seed():
    every = hashes(4000)
    first, second = assign(every, seed=0), assign(every, seed=1)
    for split, share in SHARES.items():
        mine = members(every, first, split)
        spread = 4 * (share * (1 - share) / len(every)) ** 0.5
        assert abs(mine.mean() - share) < spread
        assert abs(members(every, second, split)[mine].mean() - share) < spread * 2
    assert Split.TEST not in first.values()


def test_every_item_is_in_exactly_one_split():
    every = hashes(50)
    splits = assign(every, shares=WHOLE)
    assert (sum(members(every, splits, split).astype(int) for split in Split) == 1).all()
    assert members(every, splits, *Split).all()


@pytest.mark.parametrize("shares", [{Split.HEADS: 0.5}, {Split.HEADS: 1.5, Split.TEST: -0.5}])
def test_shares_that_divide_nothing_are_refused(shares):
    with pytest.raises(ConfigError, match="no division"):
        assign(hashes(2), shares=shares)


def test_an_item_that_was_never_assigned_is_refused():
    with pytest.raises(DataError, match="in no split"):
        members(hashes(3), assign(hashes(2)), Split.HEADS)


def test_grids_are_found():
    digits = load_digits().images[:200]
    assert grid_of((digits / 16).astype(np.float32)) == 16
    assert grid_of(digits.astype(np.uint8)) == 255
    for steps in (1, 3, 15, 31, 63, 100, 255):
        values = from_steps(rng().integers(0, steps + 1, (200, 30)), steps)
        assert grid_of(values) == steps
        assert grid_of((values * 2 - 1 + 1).astype(np.float32) / 2) == steps  # there and back through [-1, 1]


def test_continuous_data_has_no_grid_and_one_stray_value_is_enough():
    assert grid_of(rng().random((50, 20)).astype(np.float32)) is None
    values = from_steps(rng().integers(0, 256, (9000, 30)), 255)
    assert grid_of(values) == 255
    values[1234, 7] = 0.5
    assert grid_of(values) is None


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3), np.int16), "int16"),
        (np.zeros((0, 3), np.float32), "no images"),
        (np.full((2, 3), 1.5, np.float32), r"unit space is \[0, 1\]"),
        (np.full((2, 3), np.nan, np.float32), r"unit space is \[0, 1\]"),
    ],
)
def test_what_has_no_grid_to_look_for_is_refused(images, message):
    with pytest.raises(DataError, match=message):
        grid_of(images)


def test_snapping_goes_to_the_nearest_grid_point_and_is_exact():
    values = rng().random((40, 9)).astype(np.float32)
    snapped = snap(values, 16)
    assert np.array_equal(snap(snapped, 16), snapped)
    assert on_grid(snapped, 16)
    assert np.abs(snapped - values).max() <= 0.5 / 16 + 1e-6
    assert np.array_equal(snap(values, None), values)
    pixels = np.arange(256, dtype=np.uint8).astype(np.float32) / np.float32(255)
    assert np.array_equal(snap(pixels, 255), pixels)


@pytest.mark.parametrize(
    ("budget", "grid", "steps"), [(8 / 255, 255, 8), (2 / 16, 16, 2), (0.1, 16, 1), (0.05, 16, 0), (0.29, 100, 29)]
)
def test_whole_steps_of_a_budget(budget, grid, steps):
    assert whole_steps(budget, grid) == steps


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("grid", [16, 255])
def test_snapping_within_a_ball_stays_on_grid_in_box_and_ball(norm, grid):
    clean = from_steps(rng(1).integers(grid // 3, 2 * grid // 3, (60, 3, 5, 4)), grid)
    direction = rng(2).normal(size=clean.shape)
    size = np.abs(direction) if norm == "linf" else np.sqrt((direction**2).sum(axis=(1, 2, 3), keepdims=True))
    budget = 0.104 if norm == "linf" else 0.6
    points = (clean + budget * direction / size).astype(np.float32)  # on the ball's surface
    snapped = snap_within(points, clean, grid, budget, norm)
    perturbation = (snapped.astype(np.float64) - clean).reshape(60, -1)
    assert on_grid(snapped, grid)
    assert snapped.min() >= 0
    assert snapped.max() <= 1
    sizes = np.abs(perturbation).max(axis=1) if norm == "linf" else np.sqrt((perturbation**2).sum(axis=1))
    assert (sizes <= budget + 1e-6).all()
    assert (sizes > 0.5 * budget).all()  # it gives away no more than rounding takes
    free = snap_within(points, clean, grid, None, norm)
    assert np.array_equal(free, snap(points, grid))
    assert not np.array_equal(snapped, free)  # the budget had something to do


def test_duplicates_land_together():
    image = rng().random((5, 5)).astype(np.float32)
    splits = assign([content_hash(image), content_hash(image + 1), content_hash(image.copy())])
    assert len(splits) == 2
