"""The difference between a served model and the guard's copy is in units that mean something, or it is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from guard.errors import ModelError
from guard.offline.model.served import MEASURED_ITEMS, Served, as_served, measure_difference
from guard.value_box import ValueBox

BOX = ValueBox((0.0,), (255.0,), 1, "NC")
IMAGES = np.random.default_rng(0).random((1000, 3)).astype(np.float32)


def copy(unit: torch.Tensor) -> torch.Tensor:
    return unit * 10


def served(change: Callable[[NDArray[np.float64]], NDArray[np.float64]], ending: str = "") -> Served:
    """A model that gives what the copy gives of the wire's values, as `ending` says, changed."""
    return Served("is made up", "numpy", lambda wire: change(as_served(wire.astype(np.float64) / 25.5, ending)), ending)


def test_a_shift_is_told_in_standard_deviations_of_the_outputs() -> None:
    logits = as_served(IMAGES[np.linspace(0, 999, MEASURED_ITEMS).round().astype(int)] * 10.0, "")
    found = measure_difference(served(lambda given: given + 0.5), copy, IMAGES, BOX)
    assert (found.items, found.changed) == (MEASURED_ITEMS, 0)
    assert found.largest == pytest.approx(0.5 / logits.std(), rel=1e-4)
    assert str(found) == (
        "the served model is made up, the guard's copy is float32; by numpy, 0.00% of the predictions on 256 items "
        f"differ, outputs by up to {found.largest:.2g} of their spread"
    )


def some_swapped(items: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    def change(given: NDArray[np.float64]) -> NDArray[np.float64]:
        given[:items] = given[:items].max(axis=1, keepdims=True) - given[:items]
        return given

    return change


def test_predictions_that_differ_are_counted_and_refused_where_they_are_too_many() -> None:
    found = measure_difference(served(some_swapped(12)), copy, IMAGES, BOX)
    assert found.changed == 12 / 256
    with pytest.raises(ModelError, match=r"5\.08% of the predictions on 256 items differ.*at most 5% of the predict"):
        measure_difference(served(some_swapped(13)), copy, IMAGES, BOX)


def test_probabilities_are_compared_with_probabilities() -> None:
    found = measure_difference(served(lambda given: given, "softmax"), copy, IMAGES, BOX)
    assert found.largest == pytest.approx(0, abs=1e-5)


def test_of_labels_only_the_share_is_known() -> None:
    found = measure_difference(served(lambda given: given, "argmax"), copy, IMAGES, BOX)
    assert (found.changed, found.largest) == (0, None)
    assert str(found).endswith("differ")


def test_numbers_that_are_not_finite_are_predictions_that_differ() -> None:
    with pytest.raises(ModelError, match=r"100\.00% of the predictions"):
        measure_difference(served(lambda given: given + np.inf), copy, IMAGES, BOX)


def test_a_model_of_other_classes() -> None:
    with pytest.raises(ModelError, match=r"the served model gives \[256, 2\], the guard's copy \[256, 3\]"):
        measure_difference(served(lambda given: given[:, :2]), copy, IMAGES, BOX)
