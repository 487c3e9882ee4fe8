"""Natural shifts: on the grid, in the box, no stronger than they say, and nothing for vectors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.offline.data.grid import on_grid
from guard.offline.data.picture_shifts import PICTURE_SHIFTS
from guard.offline.data.shift import Shift, shifted


def pictures(channels: int, grid: int = 255) -> NDArray[np.float32]:
    """Smooth ones, as photographs are: [item, channel, height, width]."""
    row, column = np.mgrid[0:16, 0:16] / 15
    generator = np.random.default_rng(channels)
    waves = [0.5 + 0.4 * np.sin(6 * (a * row + b * column)) for a, b in generator.random((3 * channels, 2))]
    images = np.stack(waves).reshape(3, channels, 16, 16)
    return (np.rint(images * grid) / grid).astype(np.float32)


def by_name(name: str) -> Shift:
    return next(shift for shift in PICTURE_SHIFTS if shift.name == name)


@pytest.mark.parametrize("shift", PICTURE_SHIFTS, ids=lambda shift: shift.name)
@pytest.mark.parametrize(("channels", "grid"), [(1, 255), (3, 255), (3, 16)])
def test_a_shifted_picture_is_one_like_any_other(shift: Shift, channels: int, grid: int) -> None:
    images = pictures(channels, grid)
    kept = images.copy()
    moved = shifted(shift, images, grid)
    assert moved is not None
    assert moved.shape == images.shape
    assert moved.dtype == np.float32
    assert on_grid(moved, grid)
    assert moved.min() >= 0
    assert moved.max() <= 1
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(shifted(shift, images, grid), moved)
    if grid == 255:
        assert np.abs(moved - images).max() > 0, "something was done"


def test_severities_are_ordered() -> None:
    images = pictures(3)

    def moved(name: str) -> float:
        found = shifted(by_name(name), images, None)
        assert found is not None
        return float(np.abs(found - images).mean())

    assert moved("blur 0.5 px") < moved("blur 1 px")
    assert moved("JPEG quality 90") < moved("JPEG quality 75") < moved("JPEG quality 50")


def test_brightness_and_contrast_do_what_they_say() -> None:
    images = pictures(1)
    brighter, flatter = (shifted(by_name(name), images, None) for name in ("brightness +15%", "contrast x 0.7"))
    assert brighter is not None
    assert flatter is not None
    inside = images < 0.8
    np.testing.assert_allclose((brighter - images)[inside], 0.15, atol=1e-5)
    np.testing.assert_allclose(flatter.std(axis=(1, 2, 3)), 0.7 * images.std(axis=(1, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(flatter.mean(axis=(1, 2, 3)), images.mean(axis=(1, 2, 3)), atol=1e-4)


def test_blur_keeps_what_is_flat() -> None:
    flat = np.full((1, 3, 8, 8), 0.4, dtype=np.float32)
    found = shifted(by_name("blur 1 px"), flat, 255)
    assert found is not None
    np.testing.assert_allclose(found, 0.4, atol=1e-6)


def test_a_file_format_that_does_not_know_the_channels_is_left_out() -> None:
    assert shifted(by_name("JPEG quality 75"), pictures(2), 255) is None
    assert shifted(by_name("blur 1 px"), pictures(2), 255) is not None
