"""Order of axes: one reading of a shape, or an error that names both."""

from __future__ import annotations

import pytest

from guard.errors import DataError
from guard.layout import FIRST, LAST, layout_for, layout_of_data

Sizes = tuple[int, ...]


@pytest.mark.parametrize(
    ("sizes", "wire", "wanted"),
    [
        ((32, 32, 3), (3, 32, 32), LAST),
        ((3, 32, 32), (3, 32, 32), FIRST),
        ((3, 32, 32), (32, 32, 3), FIRST),
        ((32, 32, 3), (32, 32, 3), LAST),
        ((32, 48, 3), (3, None, None), LAST),
        ((3, 32, 48), (3, None, None), FIRST),
        ((3, 32, 48), (None, None, None), FIRST),
        ((28, 28, 1), (1, 28, 28), LAST),
        ((1, 28, 28), (28, 28, 1), FIRST),
        ((8, 8, 13), (13, 8, 8), LAST),
        ((13, 8, 8), (13, 8, 8), FIRST),  # square pictures are likelier than 13 x 8 of 8 channels
        ((3, 8, 3), (3, 3, 8), LAST),
        ((3, 8, 3), (8, 3, 3), FIRST),
        ((3, 4, 4), (3, 4, 4), FIRST),
        ((1, 1, 1), (1, 1, 1), FIRST),
        ((32, 32, 3), None, LAST),
        ((3, 32, 32), None, FIRST),
        ((64, 64, 12), None, LAST),
    ],
)
def test_one_reading_is_left(sizes: Sizes, wire: tuple[int | None, ...] | None, wanted: str) -> None:
    assert layout_of_data(sizes, wire, "x", either=True) == wanted


@pytest.mark.parametrize(
    ("sizes", "wire"),
    [((3, 3, 3), (3, 3, 3)), ((3, 8, 3), (3, 8, 3)), ((3, 8, 3), None), ((4, 4, 4), None), ((9, 7, 8), None)],
)
def test_two_readings_are_refused(sizes: Sizes, wire: Sizes | None) -> None:
    with pytest.raises(DataError, match=r"x: items of shape .* or .*--data-layout NCHW or NHWC"):
        layout_of_data(sizes, wire, "x", either=True)


def test_a_model_that_takes_channels_first_alone_gets_no_rows_for_channels() -> None:
    with pytest.raises(DataError, match=r"32 channels of 32 x 3 .*3 channels of 32 x 32 .* looks right"):
        layout_of_data((32, 32, 3), (32, 32, 3), "x", either=False)


def test_what_fits_in_no_way_is_left_to_the_models_own_error() -> None:
    assert layout_of_data((1, 8, 7), (1, 8, 8), "x", either=False) == FIRST
    assert layout_of_data((8, 7, 1), (1, 8, 8), "x", either=False) == LAST


def test_a_bundles_input_decides_but_for_a_cube() -> None:
    assert layout_for((3, 8, 3), (3, 3, 8), "x") == LAST
    assert layout_for((3, 8, 3), (3, 8, 3), "x") == FIRST
    assert layout_for((1, 1, 1), (1, 1, 1), "x") == FIRST
    with pytest.raises(DataError, match="--data-layout"):
        layout_for((3, 3, 3), (3, 3, 3), "x")
    with pytest.raises(DataError, match=r"x: one item has shape \[8, 3, 3\]; the model takes \[4, 3, 3\]"):
        layout_for((8, 3, 3), (4, 3, 3), "x")
