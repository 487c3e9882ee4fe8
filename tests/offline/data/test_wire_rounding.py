"""A wire of half precision moves pictures off their grid, and the guard still finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard import array_room
from guard.arrays import read_examples
from guard.items_on_disk import ItemsOnDisk
from guard.manifest import InputSpec
from guard.offline.data.dataset import Dataset, dataset_of
from guard.offline.data.grid import GridSearch, from_steps, grid_of, wire_rounding

BOXES = {
    "unit": InputSpec("input", "FP16", (1, 6, 8), (0.0,), (1.0,), None),
    "bytes' range": InputSpec("input", "FP16", (1, 6, 8), (0.0,), (255.0,), None),
    "normalised": InputSpec("input", "FP16", (3, 6, 8), (-2.118, -2.036, -1.804), (2.249, 2.429, 2.64), None),
}
LABELS = np.arange(60) % 2


def pixels(channels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (60, 6, 8, channels), dtype=np.uint8)


def opened(folder: Path, images: NDArray[Any], spec: InputSpec) -> Dataset:
    np.savez(folder / "data.npz", images=images, labels=LABELS)
    return dataset_of(read_examples(folder / "data.npz", stream=True), spec, kept=folder)


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("form", ["bytes", "floats"])
@pytest.mark.parametrize("box", BOXES)
def test_pictures_keep_their_grid_and_travel_as_they_were(
    box: str, form: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = BOXES[box]
    if place == "disk":
        monkeypatch.setattr(array_room, "memory_bytes", lambda: 4000)
    exact = from_steps(pixels(spec.shape[0]).transpose(0, 3, 1, 2).astype(np.int64), 255)
    wire = spec.box.from_unit(exact)
    found = opened(tmp_path, pixels(spec.shape[0]) if form == "bytes" else wire, spec)
    assert isinstance(found.images, ItemsOnDisk) == (place == "disk")
    assert found.values().grid == 255
    np.testing.assert_array_equal(found.images[:], exact)
    np.testing.assert_array_equal(spec.box.from_unit(found.images[:]), wire)


def test_without_whole_steps_there_is_still_no_grid(tmp_path: Path) -> None:
    values = np.random.default_rng(1).random((60, 1, 6, 8)).astype(np.float32)
    found = opened(tmp_path, values, BOXES["unit"])
    assert found.values().grid is None
    np.testing.assert_array_equal(found.images[:], values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("steps", [1, 16, 51, 100, 254, 255])
def test_every_grid_survives_rounding_and_is_searched_alike_in_parts(steps: int) -> None:
    rounding = wire_rounding(BOXES["unit"].box)
    values = (np.random.default_rng(steps).integers(0, steps + 1, 5000) / steps).astype(np.float16).astype(np.float32)
    search = GridSearch(rounding)
    for part in np.split(values, 10):
        search.see(part)
    assert search.found() == grid_of(values, rounding) == steps


def test_a_wire_of_single_precision_rounds_nothing() -> None:
    spec = InputSpec("input", "FP32", (1, 6, 8), (0.0,), (1.0,), None)
    assert wire_rounding(spec.box) == 0
