"""Values that cannot be the model's own are refused before anything is built on them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.arrays import to_wire
from guard.errors import DataError
from guard.manifest import InputSpec

ITEMS = np.random.default_rng(0).random((20, 1, 8, 8)).astype(np.float32)


def spec(low: float, high: float, shape: tuple[int, ...] = (1, 8, 8)) -> InputSpec:
    return InputSpec("x", "FP32", shape, (low,), (high,), None)


@pytest.mark.parametrize(
    ("items", "box", "words"),
    [
        (ITEMS, (-0.42, 2.82), "before they are normalised.*normalise them.*--range 0 1"),
        (ITEMS, (-1.0, 1.0), "before they are normalised"),
        (np.rint(ITEMS), (0.0, 255.0), "all but black; wanted the model's own values: multiply them"),
        (np.rint(ITEMS).astype(np.uint8), (0.0, 1.0), "bytes span 0 to 1 in 20 pictures, all but black"),
        ((ITEMS * 16).astype(np.uint8), (0.0, 16.0), "bytes span 0 to 15 in 20 pictures, all but black"),
    ],
)
def test_pictures_on_another_scale_are_refused(
    items: NDArray[np.float32], box: tuple[float, float], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        to_wire(items, spec(*box))
    assert to_wire(items[:4], spec(*box)).shape == (4, 1, 8, 8), "few may be so by chance"


def test_what_may_be_the_models_own_passes() -> None:
    assert to_wire(ITEMS * 2 - 1, spec(-1, 1)).min() < 0
    assert to_wire(ITEMS, spec(0, 1)).max() <= 1
    vectors = np.rint(ITEMS.reshape(20, 64))
    assert np.array_equal(to_wire(vectors, spec(-1, 1, (64,))), vectors)
    assert np.array_equal(to_wire(vectors, spec(0, 255, (64,))), vectors)
