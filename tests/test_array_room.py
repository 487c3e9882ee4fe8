"""Room for large arrays: small ones in memory, large ones in a file that leaves with them, none on a full disk."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard import array_room
from guard.array_room import MAX_MEMORY_SHARE, PART_BYTES, max_array_bytes, new_array, parts, taken
from guard.errors import DataError


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A limit of 1000 bytes of memory; the folder in which temporary files are made."""
    monkeypatch.setattr(array_room, "memory_bytes", lambda: 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def mapped(folder: Path) -> bool:
    """Whether this process looks into a file of a folder."""
    return f"{folder}/" in Path("/proc/self/maps").read_text()


def test_a_large_array_lies_in_a_file_that_leaves_with_it(small_memory: Path) -> None:
    few = new_array((50, 4), np.uint8, "x")
    assert not mapped(small_memory)
    many = new_array((51, 2), np.float32, "x")
    assert mapped(small_memory)
    assert (few.shape, many.shape, many.dtype, many.any()) == ((50, 4), (51, 2), np.float32, False)
    assert list(small_memory.iterdir()) == []
    many[7] = 3
    view = many[5:9]
    del many
    assert view[2].tolist() == [3, 3]
    del view
    assert not mapped(small_memory)


def test_the_smaller_of_group_and_machine_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in (None, 2**62):
        monkeypatch.setattr(array_room, "memory_bytes", lambda group=group: group)
        assert max_array_bytes() == int(MAX_MEMORY_SHARE * machine)
    monkeypatch.setattr(array_room, "memory_bytes", lambda: 1000)
    assert max_array_bytes() == int(MAX_MEMORY_SHARE * 1000)


def test_a_full_disk_is_an_error_before_anything_is_written(
    small_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=rf"^x: .* 3\.0 GiB.*{small_memory} has no room .*\(No space left.*TMPDIR"):
        new_array((3 * 2**30,), np.uint8, "x")


@pytest.mark.parametrize(
    ("items", "item_bytes", "sizes"),
    [
        (10, PART_BYTES // 2, [2] * 5),
        (5, PART_BYTES // 2, [2, 2, 1]),
        (2, 3 * PART_BYTES, [1, 1]),
        (3, 0, [3]),
        (0, 9, []),
    ],
)
def test_parts_cover_all_items_once(items: int, item_bytes: int, sizes: list[int]) -> None:
    found = [np.arange(items)[part] for part in parts(items, item_bytes)]
    assert [len(one) for one in found] == sizes
    assert [value for one in found for value in one.tolist()] == list(range(items))


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(np.asarray([6, 0, 0, 3]), id="places"),
        pytest.param(np.arange(7) % 2 == 0, id="mask"),
        pytest.param(np.zeros(7, dtype=np.bool_), id="none"),
        pytest.param(slice(1, 4), id="slice"),
    ],
)
def test_taken_items_are_those_of_the_index(
    index: NDArray[Any] | slice, monkeypatch: pytest.MonkeyPatch, small_memory: Path
) -> None:
    monkeypatch.setattr(array_room, "PART_BYTES", 20)  # less than an item: each is a part
    array = np.arange(7 * 60, dtype=np.uint8).reshape(7, 60)
    assert np.array_equal(taken(array, index, "x"), array[index])


def test_items_that_are_taken_lie_on_disk_where_they_are_many(small_memory: Path) -> None:
    few, many = np.zeros((7, 20), dtype=np.uint8), np.zeros((7, 60), dtype=np.uint8)
    kept = taken(few, np.arange(7), "x")
    assert not mapped(small_memory)
    kept = taken(many, np.arange(7), "x")
    assert mapped(small_memory)
    assert kept.shape == many.shape
