"""Grid of clean values, and how a perturbed item is brought onto it.

Rule 1: clean, noisy and attacked items lie on one grid, so that no detector tells them apart by it. It is of so many
even steps for all values, or of each feature's own (`feature_grid.py`), or there is none.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.array_room import parts
from guard.errors import DataError
from guard.manifest import InputSpec
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.norms import Measure
from guard.value_box import ValueBox

MAX_GRID_STEPS = 255  # steps of the finest grid looked for
GRID_TOLERANCE = 1e-4  # in unit space: how far from a grid a value may lie and still be on it
FINE_TOLERANCE = 5e-6  # the same where grids are told apart: points of two of them lie 1/(254 * 255) apart, or are one
SAMPLED_VALUES = 65536  # values by which most grids are ruled out
SHRINKS = np.linspace(1, 0, 51)
Images = NDArray[np.float32]  # [item, ...] in unit space
Grid: TypeAlias = int | FeatureGrid | None  # even steps between 0 and 1, or those of a table's features


def grid_for(spec: InputSpec) -> Grid:
    """Return the grid of a model's inputs."""
    return FeatureGrid.of(spec) or spec.grid


def wire_rounding(box: ValueBox) -> float:
    """Return how far, in unit space, a wire of half precision moves a value by rounding it; 0 for all other wires.

    Between 0.5 and 1 float16 has steps of 1/2048, so that 100/255 may travel as what is 1/4096 from it.
    """
    if box.dtype != np.float16:
        return 0.0
    low, high = (np.asarray(ends, np.float64) for ends in (box.low, box.high))
    largest = np.maximum(np.abs(low), np.abs(high)).astype(np.float16)
    return float((np.spacing(largest).astype(np.float64) / 2 / (high - low)).max())


def grid_of(images: NDArray[Any], rounding: float = 0.0) -> int | None:
    """Return the steps of the grid that all values lie on, or None: 255 for uint8, the fewest that fit for floats.

    `rounding` is how far the wire may have moved each of them (`wire_rounding`). The finest tolerance is tried first:
    1/255 lies within GRID_TOLERANCE of 1/249, and would be taken for a step of that grid.

    Raises:
        DataError: neither uint8 nor unit-space floats.
    """
    if images.dtype == np.uint8:
        return MAX_GRID_STEPS
    if images.dtype.kind != "f":
        raise DataError(f"images are {images.dtype}; wanted uint8, or float32 in [0, 1]")
    if images.size == 0:
        raise DataError("there are no images to find a grid in")
    low, high = float(images.min()), float(images.max())
    if not (low >= -GRID_TOLERANCE and high <= 1 + GRID_TOLERANCE):
        raise DataError(f"images span [{low:g}, {high:g}]; unit space is [0, 1]")
    values = images.reshape(-1)
    sample = np.unique(values[:: max(1, values.size // SAMPLED_VALUES)])
    distances = {steps: distance_to_grid(sample, steps) for steps in range(1, MAX_GRID_STEPS + 1)}
    for tolerance in (FINE_TOLERANCE + rounding, GRID_TOLERANCE + rounding):
        for steps, distance in distances.items():
            if distance <= tolerance and distance_to_grid(values, steps) <= tolerance:
                return steps
    return None


class GridSearch:
    """A search for the grid of values that come part by part: finds what `grid_of` finds for all of them together."""

    def __init__(self, rounding: float = 0.0) -> None:
        """Begin a search among values that the wire may have moved by `rounding`."""
        self.rounding = rounding
        self.distances = dict.fromkeys(range(1, MAX_GRID_STEPS + 1), 0.0)  # by steps: of the value furthest from it

    def see(self, values: NDArray[np.float32]) -> None:
        """Rule out the grids that some of these unit-space values do not lie on."""
        flat = values.reshape(-1)
        sample = np.unique(flat[:: max(1, flat.size // SAMPLED_VALUES)])
        most = GRID_TOLERANCE + self.rounding
        near = [steps for steps in self.distances if distance_to_grid(sample, steps) <= most]
        furthest = {steps: max(self.distances[steps], distance_to_grid(flat, steps)) for steps in near}
        self.distances = {steps: distance for steps, distance in furthest.items() if distance <= most}

    def found(self) -> int | None:
        """Return the steps of the grid that all values lie on, or None."""
        for tolerance in (FINE_TOLERANCE + self.rounding, GRID_TOLERANCE + self.rounding):
            for steps, distance in self.distances.items():
                if distance <= tolerance:
                    return steps
        return None


def on_grid(images: NDArray[Any], grid: Grid) -> bool:
    """Return whether every value is a whole number of steps, within rounding; without a grid all are."""
    if isinstance(grid, FeatureGrid):
        return grid.contains(images)
    return grid is None or distance_to_grid(images, grid) <= GRID_TOLERANCE


def distance_to_grid(images: NDArray[Any], grid: int) -> float:
    """Return how far the value that lies furthest from the grid is from its nearest point."""
    values = images.reshape(-1)
    furthest = 0.0
    for part in parts(values.size, values.itemsize):  # there may be more of them than memory has room for
        distances = np.abs(values[part] - np.rint(values[part] * grid) / grid)
        furthest = float(np.maximum(furthest, distances.max()))  # NaN stays NaN
    return furthest


def snap(images: NDArray[Any], grid: Grid) -> NDArray[np.float32]:
    """Snap unit-space values to their nearest grid points; unchanged where there is no grid."""
    if isinstance(grid, FeatureGrid):
        return grid.snap(images)
    return np.asarray(images, dtype=np.float32) if grid is None else from_steps(to_steps(images, grid), grid)


def to_steps(images: NDArray[Any], grid: int) -> NDArray[np.int64]:
    return np.rint(np.asarray(images, dtype=np.float64) * grid).astype(np.int64)


def from_steps(steps: NDArray[np.int64], grid: int) -> NDArray[np.float32]:
    """Convert whole steps to the very floats that dividing an 8-bit image by 255 gives."""
    return steps.astype(np.float32) / np.float32(grid)


def snap_within(
    images: Images, clean: Images, grid: int | FeatureGrid, budget: float | NDArray[np.float64] | None, norm: Measure
) -> NDArray[np.float32]:
    """Snap images to the grid, within the unit box and within `budget` of `clean`, which is on the grid itself.

    The budget is one for all items, or has one for each [item].
    In L∞ a perturbation is cut to the whole steps that fit. In L2 and L1 rounding can lengthen it: it is then shrunk by
    2 % of what it was, and rounded anew, until it fits. What L0 leaves alone rounding leaves alone too.
    """
    if isinstance(grid, FeatureGrid):
        return grid.within(images, clean, budget, norm)
    base = to_steps(clean, grid)
    wanted = np.asarray(images, dtype=np.float64) * grid - base  # in steps, not yet whole
    if budget is None or norm in ("linf", "l0", "none"):
        most = spread(whole_steps(budget, grid), wanted) if budget is not None and norm == "linf" else grid
        steps = np.rint(wanted).astype(np.int64).clip(-most, most)
        return from_steps((base + steps).clip(0, grid), grid)
    result = base.copy()
    outside = np.ones(len(base), dtype=bool)
    for shrink in SHRINKS:
        tried = (base[outside] + np.rint(shrink * wanted[outside]).astype(np.int64)).clip(0, grid)
        result[outside] = tried
        moved = (tried - base[outside]).reshape(len(tried), -1)
        length = np.linalg.norm(moved, ord=2 if norm == "l2" else 1, axis=1) / grid
        outside[outside] = length > (budget[outside] if isinstance(budget, np.ndarray) else budget) * (1 + 1e-6)
        if not outside.any():
            break
    return from_steps(result, grid)


def whole_steps(budget: float | NDArray[np.float64], grid: int) -> NDArray[np.int64]:
    """Return how many grid steps fit into an L∞ budget; 8/255 holds eight steps of 255 whatever it rounds to."""
    return np.asarray(np.floor(budget * np.float64(grid) + 1e-6), dtype=np.int64)


def spread(sizes: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """Return one size for all items, or one for each [item], so that it broadcasts over the items of `like`."""
    return sizes.reshape(-1, *(1,) * (like.ndim - 1)) if sizes.ndim else sizes


def off_grid(images: Images, grid: Grid, generator: torch.Generator) -> Images | None:
    """Move every value half a grid step up or down, inside the box: clean, but as no 8-bit file holds it.

    There is nothing of the kind without a grid; of features only numbers with decimals move.
    """
    if isinstance(grid, FeatureGrid):
        return grid.off(images, generator)
    if grid is None:
        return None
    clean = torch.tensor(images)
    return np.asarray(moved_inside(clean, torch.full_like(clean, 0.5 / grid), generator).numpy(), dtype=np.float32)


def moved_inside(clean: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    """Move each entry by `amount`, up or down at random where both stay in the unit box, else the way that does."""
    coin = torch.rand(clean.shape, generator=generator, device=generator.device).to(clean.device) < 0.5
    up = torch.where(coin, clean + amount <= 1, clean - amount < 0)
    return torch.where(up, clean + amount, clean - amount).clamp(0, 1)


def stuck(budget: float, grid: Grid) -> bool:
    """Return whether an L-infinity budget is below one step of the grid, of every feature where each has its own."""
    if isinstance(grid, FeatureGrid):
        return not grid.limits(budget).any()
    return grid is not None and bool(whole_steps(budget, grid) < 1)
