"""Checks before crafting: items, labels and model fit each other, and the data's grid can hold the budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from guard.errors import ConfigError, DataError, ModelError
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.methods.patch import covered
from guard.offline.attacks.ranges import largest, smallest
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.dataset import Dataset
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import MAX_GRID_STEPS, Grid, on_grid, stuck


def check(run: CraftSetup, items: Dataset) -> None:
    """Check that these items can be attacked; raises the errors that `craft` documents."""
    model, images, labels = run.model, items.images[:], items.labels
    if any(part.training for part in model.module.modules()):
        raise ModelError("the model is in training mode; call eval() first, or its answers depend on batch mates")
    counts = [len(given) for given in (images, labels, items.hashes)]
    if min(counts) == 0 or min(counts) != max(counts):
        raise DataError("{} images, {} labels and {} hashes; wanted equally many, not 0".format(*counts))
    if images.dtype != np.float32 or not bool(((images >= 0) & (images <= 1)).all()):
        raise DataError(f"images are {images.dtype} in [{images.min():g}, {images.max():g}]; wanted float32 in [0, 1]")
    if labels.dtype != np.int64 or labels.min() < 0:
        raise DataError(f"labels are {labels.dtype} from {labels.min()} on; wanted int64 class numbers from 0")
    if run.grid is not None and not on_grid(images, run.grid):
        steps = "the steps of their features" if isinstance(run.grid, FeatureGrid) else f"a grid of {run.grid} steps"
        raise DataError(f"items are not on {steps}; grid_of() and find_features() find the data's own")
    if run.shard_items is not None and run.shard_items < 1:
        raise ConfigError(f"shard_items = {run.shard_items}; wanted at least 1")


def check_budgets(attacks: Sequence[Attack], grid: Grid, item_shape: Sequence[int]) -> None:
    """Check that each budget moves something: a step of the grid, or a place of an item. Raises ConfigError.

    A range's lower end must, too, except where items that draw less are given one step.
    """
    places = math.prod(item_shape[1:] or item_shape)
    for attack in attacks:
        least, most = smallest(attack.budget), largest(attack.budget)
        if least is None or most is None:
            continue
        if attack.norm == "linf":
            if stuck(most if lifts(attack, grid) else least, grid):
                raise ConfigError(f"{attack!r}: its budget is below {one_step(grid)}")
            if beyond(most, grid):
                raise ConfigError(f"{attack!r}: its budget is above {whole_range(most)}")
        if attack.traits.covers:
            covered(attack, least, places)


def lifts(attack: Attack, grid: Grid) -> bool:
    """Return whether an item that draws a budget below one step of the grid is given one step."""
    return isinstance(grid, int) and not attack.traits.learns


def lifted(attacks: Sequence[Attack], grid: Grid) -> list[str]:
    """Say of which attacks a range begins below one step of the grid, and so at one step."""
    found = []
    for attack in attacks:
        least = smallest(attack.budget)
        if attack.norm == "linf" and least is not None and lifts(attack, grid) and stuck(least, grid):
            found.append(f"{attack!r}: its range of budgets begins at one step, 1/{grid}, of the data's grid")
    return found


def beyond(budget: float, grid: Grid) -> bool:
    """Return whether an L-infinity budget is more than all values span; of a table each feature has its own range."""
    return budget > 1 and not isinstance(grid, FeatureGrid)


def whole_range(budget: float) -> str:
    """Return what an L-infinity budget must not exceed, and how to give one that is of 255."""
    return f"1, the whole range of values; is it of 255? Give {budget:g}/255 = {budget / MAX_GRID_STEPS:.3g}"


def one_step(grid: Grid) -> str:
    """Return what an L-infinity budget must reach, and how to give it."""
    if isinstance(grid, FeatureGrid):
        return "one step of every feature that may change, so nothing could move; give more in a recipe (--recipe)"
    return (
        f"one step, 1/{grid}, of the data's grid, so nothing could move; give {1 / (grid or 1):.3g} or more in a "
        "recipe of your own (--recipe)"
    )
