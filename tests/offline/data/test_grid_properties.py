"""Any values, any grid: snapping lands on the grid, within box and ball, and the grid of data is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from guard.offline.data.grid import (
    FINE_TOLERANCE,
    GRID_TOLERANCE,
    MAX_GRID_STEPS,
    distance_to_grid,
    from_steps,
    grid_of,
    off_grid,
    on_grid,
    snap,
    snap_within,
    to_steps,
)
from guard.offline.data.norms import Measure

pytestmark = pytest.mark.slow

EXAMPLES = 60
ROUNDING = 1e-6  # of float32 in the unit box
GRIDS = st.integers(1, MAX_GRID_STEPS)
SHAPES = npst.array_shapes(min_dims=2, max_dims=4, max_side=5)
MEASURES: tuple[Measure, ...] = ("linf", "l2", "l1", "l0", "none")
BUDGETS = st.floats(1e-4, 3) | st.sampled_from([1 / 255, 8 / 255, 2 / 16, 0.5])


def values(shape: Any, low: float = 0.0, high: float = 1.0) -> st.SearchStrategy[NDArray[np.float32]]:
    return npst.arrays(np.float32, shape, elements=st.floats(low, high, width=32))


def points(shape: Any, grid: int) -> st.SearchStrategy[NDArray[np.float32]]:
    """Values on a grid."""
    return npst.arrays(np.int64, shape, elements=st.integers(0, grid)).map(lambda steps: from_steps(steps, grid))


@settings(max_examples=EXAMPLES)
@given(st.data(), GRIDS, SHAPES)
def test_snapping_goes_to_the_nearest_point_and_stays_there(data: st.DataObject, grid: int, shape: Any) -> None:
    images = data.draw(values(shape))
    snapped = snap(images, grid)
    assert distance_to_grid(snapped, grid) <= ROUNDING
    assert np.array_equal(snap(snapped, grid), snapped)
    assert np.abs(snapped.astype(np.float64) - images).max() <= 0.5 / grid + ROUNDING
    assert snapped.min() >= 0
    assert snapped.max() <= 1
    assert np.array_equal(to_steps(snapped, grid), np.rint(images.astype(np.float64) * grid))


@pytest.mark.parametrize("norm", MEASURES)
@settings(max_examples=EXAMPLES)
@given(data=st.data(), grid=GRIDS, shape=SHAPES)
def test_budgets_of_each_item_do_what_one_for_all_does(
    norm: Measure, data: st.DataObject, grid: int, shape: Any
) -> None:
    clean, images = data.draw(points(shape, grid)), data.draw(values(shape, -0.5, 1.5))
    budgets = np.linspace(1 / grid, 1.5, len(clean))
    snapped = snap_within(images, clean, grid, budgets, norm)
    for item, budget in enumerate(budgets.tolist()):
        alone = snap_within(images[item : item + 1], clean[item : item + 1], grid, budget, norm)
        assert np.array_equal(snapped[item : item + 1], alone)


@pytest.mark.parametrize("norm", MEASURES)
@settings(max_examples=EXAMPLES)
@given(data=st.data(), grid=GRIDS, shape=SHAPES, budget=st.none() | BUDGETS)
def test_snapping_within_stays_on_grid_in_box_and_ball(
    norm: Measure, data: st.DataObject, grid: int, shape: Any, budget: float | None
) -> None:
    clean, images = data.draw(points(shape, grid)), data.draw(values(shape, -0.5, 1.5))
    snapped = snap_within(images, clean, grid, budget, norm)
    assert snapped.dtype == np.float32
    assert np.array_equal(snapped, from_steps(to_steps(snapped, grid), grid))
    assert snapped.min() >= 0
    assert snapped.max() <= 1
    assert np.array_equal(snap_within(snapped, clean, grid, budget, norm), snapped)
    moved = (snapped.astype(np.float64) - clean).reshape(len(clean), -1)
    if budget is None:
        assert np.abs(snapped.astype(np.float64) - images.clip(0, 1)).max() <= 0.5 / grid + ROUNDING
    elif norm in ("linf", "l2", "l1"):
        order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
        rounding = ROUNDING * (moved.shape[1] if norm == "l1" else 2)
        assert np.linalg.norm(moved, ord=order, axis=1).max() <= budget * (1 + ROUNDING) + rounding


@pytest.mark.parametrize("norm", MEASURES)
@settings(max_examples=EXAMPLES)
@given(data=st.data(), grid=GRIDS, shape=SHAPES, budget=BUDGETS)
def test_what_was_not_perturbed_comes_back(
    norm: Measure, data: st.DataObject, grid: int, shape: Any, budget: float
) -> None:
    clean, images = data.draw(points(shape, grid)), data.draw(values(shape))
    kept = data.draw(npst.arrays(np.bool_, shape))
    snapped = snap_within(np.where(kept, clean, images), clean, grid, budget, norm)
    assert np.array_equal(snapped[kept], clean[kept])


@settings(max_examples=EXAMPLES)
@given(st.data(), GRIDS, SHAPES, st.sampled_from(["as it is", "there and back", "float64"]))
def test_the_grid_of_data_is_found(data: st.DataObject, grid: int, shape: Any, way: str) -> None:
    steps = data.draw(npst.arrays(np.int64, shape, elements=st.integers(0, grid)))
    images: NDArray[Any] = from_steps(steps, grid)
    if way == "there and back":
        images = ((images * 2 - 1) + 1) / 2
    elif way == "float64":
        images = steps / grid
    fewest = grid // int(np.gcd.reduce(np.append(steps.ravel(), grid)))  # 2/16 and 4/16 lie on a grid of 8
    assert grid_of(images) == fewest


@settings(max_examples=EXAMPLES)
@given(st.data(), SHAPES)
def test_a_grid_that_is_found_is_one(data: st.DataObject, shape: Any) -> None:
    images = data.draw(values(shape))
    found = grid_of(images)
    distances = [distance_to_grid(images, steps) for steps in range(1, MAX_GRID_STEPS + 1)]
    if found is None:
        assert min(distances) > GRID_TOLERANCE
        return
    assert on_grid(images, found)
    fits = [steps for steps, distance in enumerate(distances, 1) if distance <= GRID_TOLERANCE]
    fine = [steps for steps, distance in enumerate(distances, 1) if distance <= FINE_TOLERANCE]
    assert found == (fine or fits)[0]


@settings(max_examples=EXAMPLES)
@given(st.data(), GRIDS, st.integers(0, 99))
def test_half_a_step_beside_the_grid_is_in_the_box_and_off_it(data: st.DataObject, grid: int, seed: int) -> None:
    clean = data.draw(points((3, 2, 4), grid))
    moved = off_grid(clean, grid, torch.Generator().manual_seed(seed))
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert np.abs(np.abs(moved.astype(np.float64) - clean) - 0.5 / grid).max() <= ROUNDING
    assert distance_to_grid(moved, grid) >= 0.5 / grid - ROUNDING
