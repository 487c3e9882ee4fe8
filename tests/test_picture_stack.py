"""A stack of pictures: one copy of each, grey beside colour in any order, one size or an error."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.errors import DataError
from guard.picture_stack import PictureStack
from guard.pictures import Picture

GREY = np.full((4, 5, 1), 7, dtype=np.uint8)
COLOUR = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)


def stacked(pictures: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], list[str]]:
    stack = PictureStack(len(pictures), "x")
    for place, values in enumerate(pictures):
        stack.add(Picture(values, ("turned",) if place == 0 else ()), f"{place}.png")
    return stack.finish()


@pytest.mark.parametrize("order", [[GREY, GREY, COLOUR], [COLOUR, GREY, COLOUR], [GREY, COLOUR, GREY]])
def test_grey_beside_colour_becomes_colour_wherever_it_stands(order: list[NDArray[np.uint8]]) -> None:
    values, notes = stacked(order)
    assert np.array_equal(values, np.stack([np.broadcast_to(one, (4, 5, 3)) for one in order]))
    grey = sum(one.shape[2] == 1 for one in order)
    assert notes == ["1 pictures were turned", f"{grey} grey pictures beside {3 - grey} in colour were taken as RGB"]


def test_grey_alone_stays_grey() -> None:
    assert stacked([GREY, GREY])[0].shape == (2, 4, 5, 1)


def test_a_second_size_is_an_error_that_shows_both() -> None:
    with pytest.raises(DataError, match=r"x: .*2 different sizes, e.g. 2\.png 5 x 3, 0\.png 5 x 4 \(width x height\)"):
        stacked([COLOUR, COLOUR, COLOUR[:3]])
    with pytest.raises(DataError, match="holds no pictures"):
        stacked([])


def test_pictures_are_held_once() -> None:
    large = np.zeros((100, 100, 3), dtype=np.uint8)
    tracemalloc.start()
    stack = PictureStack(50, "x")
    for place in range(50):
        stack.add(Picture(large + np.uint8(place)), "a")
    values, _ = stack.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * values.nbytes
