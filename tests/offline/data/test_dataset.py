"""Data sets out of files: unit values and hashes as of all items at once, with little beside them in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from guard import array_room
from guard.arrays import to_wire
from guard.data_file import DataFile
from guard.errors import DataError
from guard.manifest import InputSpec
from guard.offline.data.dataset import Dataset, dataset_of, joined
from guard.offline.data.grid import distance_to_grid
from guard.offline.data.splits import content_hashes

SPEC = InputSpec("input", "FP32", (3, 16, 16), (-2.0, -1.0, 0.0), (2.0, 3.0, 1.0), 255)
BYTES = np.random.default_rng(0).integers(0, 256, (2000, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(2000) % 3
EXAMPLES = DataFile(BYTES, LABELS, "x", "NHWC", notes=("turned",))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_room, "PART_BYTES", 100_000)  # 32 items


def test_parts_are_the_whole() -> None:
    found = dataset_of(EXAMPLES, SPEC)
    wire = to_wire(BYTES, SPEC, layout="NHWC")
    assert np.array_equal(found.images, np.clip(SPEC.box.to_unit(wire), 0, 1))
    assert np.array_equal(found.hashes, content_hashes(wire))
    assert np.array_equal(found.labels, LABELS)
    assert (found.name, found.notes) == ("x", ("turned",))


def test_labels_are_needed() -> None:
    with pytest.raises(DataError, match="no labels"):
        dataset_of(DataFile(BYTES, None, "x", "NHWC"), SPEC)


def test_little_lies_in_memory_beside_the_items() -> None:
    tracemalloc.start()
    found = dataset_of(EXAMPLES, SPEC)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * found.images.nbytes


def test_items_lie_on_disk_where_memory_is_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = dataset_of(EXAMPLES, SPEC)
    monkeypatch.setattr(array_room, "memory_bytes", lambda: 2**20)
    tracemalloc.start()
    found = dataset_of(EXAMPLES, SPEC)
    some = found.take(np.arange(0, 2000, 2))
    both = joined(found, some)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * found.images.nbytes
    assert np.array_equal(both.images, np.concatenate([whole.images, whole.images[::2]]))
    assert np.array_equal(both.hashes, np.concatenate([whole.hashes, whole.hashes[::2]]))
    assert np.array_equal(both.labels, np.concatenate([LABELS, LABELS[::2]]))


def test_the_distance_to_a_grid_is_the_largest_of_all_parts() -> None:
    values = np.zeros((100_000, 2), dtype=np.float32)
    values[70_000, 1] = 0.3
    assert distance_to_grid(values, 1) == pytest.approx(0.3)
    values[99_999, 0] = np.nan
    assert np.isnan(distance_to_grid(values, 1))
    assert distance_to_grid(values[:0], 1) == 0


@pytest.mark.parametrize(
    ("copies", "counted"),
    [
        pytest.param([10] * 35, 35, id="ten of each"),
        pytest.param([1] * 1000, 1000, id="no copies"),
        pytest.param([2] * 5 + [1] * 990, 1000, id="few copies"),
        pytest.param([30] + [1] * 100, 16, id="one clump"),
        pytest.param([], 0, id="nothing"),
    ],
)
def test_copies_count_as_the_items_that_they_are(copies: list[int], counted: int) -> None:
    hashes = np.repeat([f"{place:064d}" for place in range(len(copies))], copies)
    data = Dataset(np.zeros((len(hashes), 1), np.float32), np.zeros(len(hashes), np.int64), hashes)
    assert (data.effective, data.distinct) == (counted, len(copies))
