"""Items larger than memory: read once, kept by file, and the same values, hashes and splits as from memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from guard import array_room
from guard.arrays import read_examples
from guard.errors import DataError
from guard.items_on_disk import ItemsOnDisk
from guard.manifest import InputSpec
from guard.offline.data.dataset import Dataset, dataset_of, joined
from guard.offline.data.grid import GridSearch, grid_of
from tests.picture_files import save

SPEC = InputSpec("input", "FP32", (3, 6, 8), (-2.0, -1.0, 0.0), (2.0, 3.0, 1.0), 255)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 8, 3), dtype=np.uint8)
LABELS = np.arange(40) % 2
FLOATS = (PIXELS[:, :, :, :1] / np.float32(255)).transpose(0, 3, 1, 2).astype(np.float32)
FLOAT_SPEC = InputSpec("input", "FP32", (1, 6, 8), (0.0,), (1.0,), 255)
SERIES_SPEC = InputSpec("input", "FP32", (2, 24), (0.0, -1.0), (255.0, 300.0), None)
VECTOR_SPEC = InputSpec("input", "FP32", (48,), (0.0,), (1.0,), 255)


def folders(path: Path) -> Path:
    for number, pixels in enumerate(PIXELS):
        grey = number % 9 == 0
        save(path / "ab"[number % 2] / f"{number:02}.png", pixels[:, :, 0] if grey else pixels)
    turned = Image.fromarray(np.ascontiguousarray(PIXELS[1].transpose(1, 0, 2)))
    exif = turned.getexif()
    exif[0x0112] = 5
    turned.save(path / "b" / "01.png", exif=exif)
    return path


def npz(path: Path, write: Callable[..., None], images: NDArray[Any]) -> Path:
    write(path / "data.npz", images=images, labels=LABELS)
    return path / "data.npz"


def parquet(path: Path, images: list[Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    table = pyarrow.table({"image": images, "label": LABELS.tolist()})
    files.write_table(table, path / "data.parquet", row_group_size=7)
    return path / "data.parquet"


def png_bytes(path: Path) -> list[Any]:
    return [{"bytes": save(path / "one.png", pixels).read_bytes(), "path": "x"} for pixels in PIXELS]


SOURCES: dict[str, tuple[Callable[[Path], Path], InputSpec]] = {
    "class folders": (folders, SPEC),
    "npz of bytes": (lambda path: npz(path, np.savez, PIXELS), SPEC),
    "npz of floats": (lambda path: npz(path, np.savez, FLOATS), FLOAT_SPEC),
    "npz of grey bytes": (lambda path: npz(path, np.savez, PIXELS[:, :, :, 0]), FLOAT_SPEC),
    "npz of series": (lambda path: npz(path, np.savez, 255 * FLOATS.reshape(40, 24, 2)), SERIES_SPEC),
    "npz of series as bytes": (lambda path: npz(path, np.savez, PIXELS[..., 0].reshape(40, 2, 24)), SERIES_SPEC),
    "npz of vectors": (lambda path: npz(path, np.savez, FLOATS.reshape(40, 48)), VECTOR_SPEC),
    "packed npz": (lambda path: npz(path, np.savez_compressed, FLOATS), FLOAT_SPEC),
    "parquet of pictures": (lambda path: parquet(path, png_bytes(path)), SPEC),
    "parquet of lists": (lambda path: parquet(path, FLOATS.tolist()), FLOAT_SPEC),
}


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_room, "memory_bytes", lambda: 4000)
    monkeypatch.setattr(array_room, "PART_BYTES", 3000)


def opened(file: Path, spec: InputSpec, kept: Path | None = None) -> Dataset:
    return dataset_of(read_examples(file, stream=True), spec, kept=kept)


@pytest.mark.parametrize("name", SOURCES)
def test_streamed_items_are_those_of_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, spec = SOURCES[name]
    file = write(tmp_path)
    held = opened(file, spec)
    monkeypatch.setattr(array_room, "memory_bytes", lambda: 4000)
    monkeypatch.setattr(array_room, "PART_BYTES", 3000)
    found = opened(file, spec, tmp_path / "kept")
    assert (held.is_on_disk, found.is_on_disk) == (False, name != "packed npz")
    index = np.asarray([31, 2, 2, 17])
    assert np.array_equal(found.images[:], held.images[:])
    assert np.array_equal(found.take(index).images[1:], held.images[index][1:])
    assert np.array_equal(found.take(held.labels == 1).take(slice(3)).images[:], held.images[held.labels == 1][:3])
    assert np.array_equal(found.hashes, held.hashes)
    assert np.array_equal(found.labels, held.labels)
    assert found.values() == held.values()
    assert set(held.notes) <= set(found.notes)


def test_two_files_behind_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = npz(tmp_path, np.savez, PIXELS), folders(tmp_path / "folders")
    whole = joined(opened(first, SPEC), opened(second, SPEC))
    small = opened(first, SPEC)
    monkeypatch.setattr(array_room, "memory_bytes", lambda: 4000)
    for one in (small, opened(first, SPEC)):
        both = joined(one, opened(second, SPEC))
        assert both.is_on_disk
        assert np.array_equal(both.take(np.arange(79, 30, -5)).images[:], whole.images[np.arange(79, 30, -5)])
        assert both.values() == whole.values()


@pytest.mark.usefixtures("little_memory")
def test_what_was_read_is_known_until_its_file_changes(tmp_path: Path) -> None:
    root, kept = folders(tmp_path / "data"), tmp_path / "kept"
    first = opened(root, SPEC, kept)
    again = opened(root, SPEC, kept)
    assert "40 were known" in again.notes[-1]
    assert again.notes[:-1] == first.notes[:-1]
    assert again.values() == first.values()
    changed = root / "a" / "02.png"
    save(changed, 255 - PIXELS[2])
    os.utime(root / "b" / "03.png", ns=(1, 1))
    third = opened(root, SPEC, kept)
    assert "38 were known" in third.notes[-1]
    assert (third.hashes != first.hashes).sum() == 1
    assert "known" not in opened(root, InputSpec("input", "FP32", (3, 6, 8), (0.0,), (1.0,), 255), kept).notes[-1]


@pytest.mark.usefixtures("little_memory")
def test_an_interrupted_reading_is_taken_up(tmp_path: Path) -> None:
    root, kept = folders(tmp_path / "data"), tmp_path / "kept"
    examples = read_examples(root, stream=True)

    def interrupt(done: int, total: int) -> None:
        assert total == 40
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset_of(examples, SPEC, kept=kept, progress=interrupt)
    told: list[int] = []
    found = dataset_of(read_examples(root, stream=True), SPEC, kept=kept, progress=lambda done, _: told.append(done))
    assert min(told) >= 20
    assert np.array_equal(found.hashes, opened(root, SPEC).hashes)
    assert "known from an earlier reading" in found.notes[-1]


@pytest.mark.usefixtures("little_memory")
def test_what_is_wrong_with_one_item_is_said(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    (root / "b" / "39.png").write_bytes((root / "b" / "39.png").read_bytes()[:90])
    with pytest.raises(DataError, match=r"39\.png"):
        opened(root, SPEC)
    save(root / "b" / "39.png", PIXELS[0][:5])
    with pytest.raises(DataError, match=r"2 different sizes.*8 x 5"):
        opened(root, SPEC)
    broken = FLOATS.copy()
    broken[33, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="item 33 holds NaN"):
        opened(npz(tmp_path, np.savez, broken), FLOAT_SPEC)
    broken[33, 0, 0, 0] = 7
    with pytest.raises(DataError, match="outside the model's range"):
        opened(npz(tmp_path, np.savez, broken), FLOAT_SPEC)
    cut = npz(tmp_path, np.savez, PIXELS)
    cut.write_bytes(cut.read_bytes()[:-3000])
    with pytest.raises(DataError, match="cannot be read"):
        opened(cut, SPEC)


@pytest.mark.usefixtures("little_memory")
def test_a_file_that_changes_while_it_is_used_is_noticed(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    found = opened(root, SPEC)
    assert isinstance(found.images, ItemsOnDisk)
    save(root / "a" / "02.png", PIXELS[0][:5])
    with pytest.raises(DataError, match="leave the files alone"):
        found.images[:5]


@pytest.mark.parametrize("steps", [1, 16, 51, 255, 1000])
def test_a_grid_that_is_searched_in_parts_is_that_of_all(steps: int) -> None:
    values = (np.random.default_rng(steps).integers(0, steps + 1, 5000) / steps).astype(np.float32)
    search = GridSearch()
    for part in np.split(values, 10):
        search.see(part)
    assert search.found() == grid_of(values)
