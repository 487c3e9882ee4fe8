"""IDX files: pairs by name, halves and doubles refused, damage named."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.arrays import read_examples
from guard.errors import DataError
from tests.picture_files import save

TRAIN, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def grey(items: int = 6, seed: int = 0) -> NDArray[np.uint8]:
    """[item, height, width], every item another."""
    return np.random.default_rng(seed).integers(0, 256, (items, 4, 5), dtype=np.uint8)


def labels(items: int = 6) -> NDArray[np.uint8]:
    return (np.arange(items) % 3).astype(np.uint8)


def idx(array: NDArray[Any]) -> bytes:
    kind = {"u1": 0x08, "i4": 0x0C, "f4": 0x0D}[array.dtype.str[1:]]
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(folder: Path, *names: str) -> Path:
    """Write train's or the test's images and labels under the names given; those that end in .gz are gzipped."""
    for name in names:
        seed, items = (0, 6) if name.lower().startswith("train") else (1, 4)
        raw = idx(grey(items, seed) if "images" in name.lower() else labels(items))
        (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return folder


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_idx_pair_by_file_and_by_folder(tmp_path: Path, *, zipped: bool) -> None:
    squeeze: Callable[[bytes], bytes] = gzip.compress if zipped else bytes
    end = ".gz" if zipped else ""
    (tmp_path / f"train-images-idx3-ubyte{end}").write_bytes(squeeze(idx(grey())))
    (tmp_path / f"train-labels-idx1-ubyte{end}").write_bytes(squeeze(idx(labels())))
    for path in (tmp_path, tmp_path / f"train-images-idx3-ubyte{end}"):
        found = read_examples(path)
        assert np.array_equal(found.images, grey())
        assert np.array_equal(found.labelled(), labels())


def test_idx_without_labels(tmp_path: Path) -> None:
    (tmp_path / "x-images-idx3-ubyte").write_bytes(idx(grey()))
    assert read_examples(tmp_path / "x-images-idx3-ubyte").labels is None


@pytest.mark.parametrize(
    "names",
    [
        (TRAIN, TRAIN_LABELS),
        (f"{TRAIN}.gz", f"{TRAIN_LABELS}.gz"),
        (TRAIN, f"{TRAIN_LABELS}.gz"),
        (TRAIN, f"{TRAIN}.gz", f"{TRAIN_LABELS}.gz", TRAIN_LABELS),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
        ("TRAIN-IMAGES-IDX3-UBYTE", "TRAIN-LABELS-IDX1-UBYTE"),
        (TRAIN, TRAIN_LABELS, "._train-images-idx3-ubyte"),
    ],
    ids=" ".join,
)
def test_a_folder_with_one_pair(tmp_path: Path, names: tuple[str, ...]) -> None:
    for path in (write(tmp_path, *names), tmp_path / names[0]):
        found = read_examples(path)
        assert np.array_equal(found.images, grey())
        assert np.array_equal(found.labelled(), labels())
        assert found.notes == ()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((TRAIN, TRAIN_LABELS, TEST, TEST_LABELS), ("2 IDX files of images", TEST, TRAIN, "--data", "--test")),
        ((TRAIN, TRAIN_LABELS, TEST), ("2 IDX files of images", TEST, TRAIN)),
        ((TRAIN, TEST_LABELS), (TRAIN, TEST_LABELS, "do not belong together", TRAIN_LABELS)),
        ((TEST, f"{TRAIN_LABELS}.gz"), (TEST, TRAIN_LABELS, "do not belong together")),
        ((TRAIN_LABELS,), ("0 IDX files of images", TRAIN_LABELS, "images are missing")),
    ],
)  # fmt: skip
def test_halves_and_doubles_are_refused(tmp_path: Path, names: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(write(tmp_path, *names), *words)


def test_labels_without_images_beside_a_pair_are_said(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path, TRAIN, TRAIN_LABELS, TEST_LABELS))
    assert np.array_equal(found.labelled(), labels())
    assert found.notes == (f"left out: {TEST_LABELS}, whose images are missing",)


def test_idx_files_beside_class_folders(tmp_path: Path) -> None:
    save(write(tmp_path, TRAIN, TRAIN_LABELS) / "cat" / "a.png", grey()[0])
    refused(tmp_path, TRAIN, "cat/a.png", "IDX files or class folders")


def test_a_picture_with_idx_in_its_name_is_a_picture(tmp_path: Path) -> None:
    assert np.array_equal(read_examples(save(tmp_path / "idx_3.png", grey()[0])).images[0, ..., 0], grey()[0])


def test_missing_labels_are_named(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path, TRAIN))
    with pytest.raises(DataError, match=TRAIN_LABELS):
        found.labelled()


def test_labels_of_another_number_of_items(tmp_path: Path) -> None:
    write(tmp_path, TRAIN)
    (tmp_path / TRAIN_LABELS).write_bytes(idx(labels(5)))
    refused(tmp_path, "6 inputs", "[5]")


def test_labels_that_are_no_whole_numbers(tmp_path: Path) -> None:
    write(tmp_path, TRAIN)
    (tmp_path / TRAIN_LABELS).write_bytes(idx(labels().astype(np.float32) / 2))
    refused(tmp_path, "float32", "whole class numbers")


def test_labels_handed_over_as_images(tmp_path: Path) -> None:
    refused(write(tmp_path, TRAIN_LABELS) / TRAIN_LABELS, "as labels are", "file of images")


def test_a_pair_one_folder_further_down(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw", TRAIN, TRAIN_LABELS)
    refused(tmp_path, "raw has IDX files")


# Damage.


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda raw: raw[:-3], id="cut short"),
        pytest.param(lambda raw: raw + b"x", id="too long"),
        pytest.param(lambda raw: raw[:2], id="head alone"),
        pytest.param(lambda raw: b"", id="empty"),
        pytest.param(lambda raw: b"PK" + raw[2:], id="foreign"),
        pytest.param(lambda raw: raw[:2] + b"\x0a" + raw[3:], id="unknown type"),
        pytest.param(lambda raw: raw[:3] + b"\xff" + raw[4:], id="absurd axes"),
    ],
)
def test_damaged_idx(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "x-images-idx3-ubyte"
    file.write_bytes(spoil(idx(grey())))
    refused(file, file.name)


@pytest.mark.parametrize("keep", [0, 1, 15, -4])
def test_damaged_gzip(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "x-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(idx(grey()))[:keep])
    refused(file, file.name)


def test_gzip_with_a_broken_middle(tmp_path: Path) -> None:
    raw = bytearray(gzip.compress(idx(grey(60))))
    raw[12:60] = b"\xff" * 48
    file = tmp_path / "x-images-idx3-ubyte.gz"
    file.write_bytes(raw)
    refused(file, file.name)
