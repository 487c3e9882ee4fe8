"""Laws of the grid of features: whatever an attack makes, items are valid, and within their budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from guard.feature_values import check_values
from guard.features import BINARY, CATEGORICAL, INTEGER, NUMERIC, Feature, box_of
from guard.manifest import InputSpec
from guard.offline.attacks.noise import shuffled
from guard.offline.data.categories import Changes
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import grid_for, off_grid, on_grid, snap, snap_within, stuck
from guard.offline.data.norms import Measure

FEATURES = (
    Feature("age", INTEGER, 17, 90, step=1, immutable=True),
    Feature("income", INTEGER, 500, 9000, step=10),
    Feature("debt", NUMERIC, -3, 41.5, step=0.01),
    Feature("ratio", NUMERIC, 0.25, 7.5),
    Feature("few", INTEGER, 0, 4, step=1),
    Feature("trade", CATEGORICAL, 0, 46, categories=(0, 3, 11, 46)),
    Feature("born", CATEGORICAL, 1, 3, categories=(1, 2, 3), immutable=True),
    Feature("owner", BINARY, 0, 1, categories=(0, 1), cost=3.0),
    *(Feature(name, BINARY, 0, 1, categories=(0, 1), group="channel") for name in ("branch", "phone", "web")),
    Feature("constant", NUMERIC, 5, 6, immutable=True),
)
SPEC = InputSpec("x", "FP32", (len(FEATURES),), *box_of(FEATURES), None, "NC", FEATURES)
MEASURES: tuple[Measure, ...] = ("linf", "l2", "l1", "l0", "none")
GRID = grid_for(SPEC)
assert isinstance(GRID, FeatureGrid)
SEEDS = st.integers(0, 2**31)


def clean_items(seed: int, items: int = 6) -> NDArray[np.float32]:
    """Wire values that the features may have."""
    draw = np.random.default_rng(seed)
    columns: list[Any] = []
    for f in FEATURES[:8]:
        if f.categories:
            columns.append(draw.choice(f.categories, items))
        elif f.step is None:
            columns.append(draw.uniform(f.low, f.high, items))
        else:
            columns.append(f.low + f.step * draw.integers(0, round(f.span / f.step) + 1, items))
    columns += [*np.eye(3)[draw.integers(0, 3, items)].T, np.full(items, 5.0)]
    return SPEC.box.to_unit(np.stack(columns, axis=1).astype(np.float32))


def points_about(clean: NDArray[np.float32], seed: int, reach: float) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed + 1)
    return (clean + draw.normal(0, reach, clean.shape)).astype(np.float32).clip(-0.2, 1.2)


def distance(points: NDArray[np.float32], clean: NDArray[np.float32], norm: Measure) -> NDArray[np.float64]:
    """Size of changes as shares of ranges, in wire values: another category is a whole range."""
    one, other = (SPEC.box.from_unit(each).astype(np.float64) for each in (points, clean))
    numbers = np.stack([np.abs(one[:, p] - other[:, p]) / FEATURES[p].span for p in range(5)], axis=1)
    changed = [one[:, p] != other[:, p] for p in (5, 6, 7)]
    changed.append((one[:, 8:11] != other[:, 8:11]).any(axis=1))
    moves = np.concatenate([numbers, np.stack(changed, axis=1).astype(np.float64)], axis=1)
    if norm == "l0":
        return (one != other).mean(axis=1)
    return np.asarray(np.linalg.norm(moves, ord={"linf": np.inf, "l2": 2, "l1": 1, "none": 1}[norm], axis=1))


def valid(points: NDArray[np.float32], clean: NDArray[np.float32]) -> None:
    wire = SPEC.box.from_unit(points)
    check_values(wire, FEATURES, "attacked", steps=True)
    assert on_grid(points, GRID)
    assert np.array_equal(points[:, [0, 6, 11]], clean[:, [0, 6, 11]])
    assert points.dtype == np.float32
    assert points.min() >= 0
    assert points.max() <= 1


@settings(max_examples=60)
@given(SEEDS, st.sampled_from(MEASURES), st.floats(0.01, 3), st.floats(0.001, 1))
def test_what_comes_out_is_valid_and_within_its_budget(seed: int, norm: Measure, budget: float, reach: float) -> None:
    clean = clean_items(seed)
    points = points_about(clean, seed, reach)
    found = snap_within(points, clean, GRID, budget, norm)
    valid(found, clean)
    if norm != "none":
        assert (distance(found, clean, norm) <= budget * (1 + 1e-5) + 1e-6).all()
    assert np.array_equal(snap_within(found, clean, GRID, budget, norm), found) or norm in ("l2", "l1", "l0")
    free = snap_within(points, clean, GRID, None, norm)
    valid(free, clean)
    assert np.array_equal(snap_within(clean, clean, GRID, budget, norm), clean)


@settings(max_examples=30)
@given(SEEDS, st.sampled_from(("linf", "l2", "l1", "l0")), st.floats(0.05, 1.0))
def test_budgets_of_each_item_do_what_one_for_all_does(seed: int, norm: Measure, reach: float) -> None:
    clean = clean_items(seed)
    points, budgets = points_about(clean, seed, reach), np.linspace(0.1, 1.6, len(clean))
    found = snap_within(points, clean, GRID, budgets, norm)
    for item, budget in enumerate(budgets.tolist()):
        alone = snap_within(points[item : item + 1], clean[item : item + 1], GRID, budget, norm)
        np.testing.assert_array_equal(found[item : item + 1], alone)


@settings(max_examples=30)
@given(SEEDS, st.floats(0.01, 1))
def test_snapping_stays_where_it_went(seed: int, reach: float) -> None:
    clean = clean_items(seed)
    assert np.array_equal(snap(clean, GRID), clean)
    snapped = snap(points_about(clean, seed, reach), GRID)
    assert np.array_equal(snap(snapped, GRID), snapped)
    check_values(SPEC.box.from_unit(snapped), FEATURES, "snapped", steps=True)


@settings(max_examples=30)
@given(SEEDS, st.floats(0.01, 0.6))
def test_noise_is_as_valid_as_attacks_and_as_large(seed: int, reach: float) -> None:
    clean = clean_items(seed, items=40)
    attacked = snap_within(points_about(clean, seed, reach), clean, GRID, None, "none")
    noise = shuffled(torch.from_numpy(clean), torch.from_numpy(attacked), torch.Generator().manual_seed(seed), GRID)
    valid(noise.numpy(), clean)
    changes = [Changes.of(GRID.categories, each, clean).count for each in (attacked, noise.numpy())]
    assert np.array_equal(*changes)
    still = shuffled(torch.from_numpy(clean), torch.from_numpy(clean), torch.Generator().manual_seed(seed), GRID)
    assert np.array_equal(still.numpy(), clean)


def test_a_budget_reaches_as_many_whole_steps_as_fit() -> None:
    clean = SPEC.box.to_unit(np.asarray([[40, 3000, 20, 3, 2, 3, 2, 0, 1, 0, 0, 5]], np.float32))
    found = snap_within(np.ones_like(clean), clean, GRID, 0.1, "linf")
    wire = SPEC.box.from_unit(found)[0].tolist()
    assert wire[:3] == pytest.approx([40, 3850, 24.45])
    assert wire[3] == pytest.approx(3.725)
    assert wire[4:] == [2, 3, 2, 0, 1, 0, 0, 5]
    assert GRID.stuck(0.1) == ["few"]
    assert GRID.stuck(0.25) == []
    both = snap_within(np.ones_like(clean), clean, GRID, 2.0, "l0")
    assert (both != clean).sum() == 6, "all but the immutable ones and the group, whose columns are alike"


def test_the_strongest_changes_of_categories_are_kept() -> None:
    clean = SPEC.box.to_unit(np.asarray([[40, 3000, 20, 3, 2, 3, 2, 0, 1, 0, 0, 5]], np.float32))
    points = clean.copy()
    points[0, 5], points[0, 7], points[0, 9] = clean[0, 5] + 0.3, 0.8, 1.4
    for budget, changed in ((0.9, []), (1.0, [8, 9]), (2.0, [7, 8, 9]), (3.0, [5, 7, 8, 9])):
        found = snap_within(points, clean, GRID, budget, "l1")
        assert np.flatnonzero(found != clean).tolist() == changed


def test_costs_count_shares_of_ranges_and_categories() -> None:
    wire = np.asarray([[40, 3000, 20, 3, 2, 3, 2, 0, 1, 0, 0, 5]], np.float32)
    other = np.asarray([[40, 4700, 20, 3, 3, 46, 2, 1, 0, 0, 1, 5]], np.float32)
    cost = GRID.cost(SPEC.box.to_unit(other), SPEC.box.to_unit(wire))
    assert cost == pytest.approx([0.2 + 0.25 + 1 + 3 + 1], abs=1e-5)


def test_the_gradient_passes_to_what_may_change() -> None:
    points = torch.from_numpy(points_about(clean_items(1), 1, 0.1)).requires_grad_()
    snapped = GRID.straight_through(points)
    assert np.array_equal(snapped.detach().numpy(), snap(points.detach().numpy(), GRID))
    (slope,) = torch.autograd.grad((3 * snapped).sum(), points)
    assert slope[0].tolist() == [0.0 if f.immutable else 3.0 for f in FEATURES]


def test_budgets_that_move_nothing_and_items_beside_the_grid() -> None:
    coarse = InputSpec("x", "FP32", (1,), (0.0,), (4.0,), None, "NC", (FEATURES[4],))
    assert stuck(0.2, grid_for(coarse))
    assert not stuck(0.25, grid_for(coarse))
    clean = clean_items(3)
    beside = off_grid(clean, GRID, torch.Generator().manual_seed(0))
    assert beside is not None
    assert np.flatnonzero((beside != clean).any(axis=0)).tolist() == [2], "numbers with decimals alone"
    assert off_grid(clean[:, :1], grid_for(coarse), torch.Generator()) is None
    names = tuple(Feature(name, NUMERIC, 0, 1) for name in "ab")
    assert grid_for(InputSpec("x", "FP32", (2,), (0.0,), (1.0,), 16, "NC", names)) == 16
