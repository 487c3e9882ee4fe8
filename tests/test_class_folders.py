"""Class folders: which folder is which class, and that nothing in them is left out or moved in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guard.arrays import read_examples
from guard.data_file import DataFile
from guard.errors import DataError
from tests.picture_files import COLOURS, RAMP, classes, save


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def said(found: DataFile, word: str) -> bool:
    return any(word in note for note in found.notes)


def numbers(found: DataFile, names: Sequence[str]) -> dict[str, int]:
    """The class of each folder of `classes`, told by the grey of its picture."""
    greys = found.images[:, 0, 0, 0].tolist()
    return {names[grey]: label for grey, label in zip(greys, found.labelled().tolist(), strict=True)}


@pytest.mark.parametrize(
    ("names", "wanted", "kept"),
    [
        ("dog cat ant", {"ant": 0, "cat": 1, "dog": 2}, "ant cat dog"),
        ("n02 n01440764 N03", {"N03": 0, "n01440764": 1, "n02": 2}, "N03 n01440764 n02"),
        ("0 1 2 3 4 5 6 7 8 9 10", {str(i): i for i in range(11)}, "0 1 2 3 4 5 6 7 8 9 10"),
        ("00 01 02 10", {"00": 0, "01": 1, "02": 2, "10": 10}, "00 01 02 3 4 5 6 7 8 9 10"),
        ("1 2 10 3 4 5 6 7 8 9", {str(i): i - 1 for i in range(1, 11)}, "1 2 3 4 5 6 7 8 9 10"),
        ("0 3", {"0": 0, "3": 3}, "0 1 2 3"),
    ],
)
def test_the_class_of_a_folder(tmp_path: Path, names: str, wanted: dict[str, int], kept: str) -> None:
    found = read_examples(classes(tmp_path, names.split()))
    assert numbers(found, names.split()) == wanted
    assert found.classes == tuple(kept.split())
    assert said(found, "classes by folder: 0 ")
    assert said(found, "without items") == (len(wanted) < len(kept.split()))


def test_numbers_within_names_are_sorted_as_text_and_it_is_said(tmp_path: Path) -> None:
    names = [f"class{i}" for i in range(1, 11)]
    found = read_examples(classes(tmp_path, names))
    assert found.classes == tuple(sorted(names))
    assert said(found, "sorted as text")


@pytest.mark.parametrize("names", [["é", "e\u0301"], ["dog", "dog "]])
def test_folders_whose_names_are_next_to_the_same_are_refused(tmp_path: Path, names: list[str]) -> None:
    refused(classes(tmp_path, names), "may be the same class", *map(repr, names))


def test_capitals_and_small_letters_are_classes_of_their_own(tmp_path: Path) -> None:
    found = read_examples(classes(tmp_path, ["A", "a", "B", "b"]))
    assert found.classes == ("A", "B", "a", "b")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    refused(classes(tmp_path, ["caf\udce9", "dog"]), "no UTF-8", "rename")


def test_further_numbers_than_those_known_are_further_classes(tmp_path: Path) -> None:
    found = read_examples(classes(tmp_path, ["0", "6"]), classes=("0", "1", "2"))
    assert sorted(set(found.labelled().tolist())) == [0, 6]


def test_a_folder_that_only_holds_tables_says_so(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,label\n1,0\n")
    refused(tmp_path, "it has train.csv: name one of them")


@pytest.mark.parametrize("names", ["1 2 4", "3 5 7"])
def test_numbers_from_elsewhere_are_refused(tmp_path: Path, names: str) -> None:
    refused(classes(tmp_path, names.split()), "neither from 0 nor 1", names.replace(" ", ", "))


@pytest.mark.parametrize("names", ["0 1 10 2 other", "-1 0 1", "5 cat"])
def test_numbers_among_words_that_are_not_their_own_place_are_refused(tmp_path: Path, names: str) -> None:
    refused(classes(tmp_path, names.split()), "would be class", "wanted whole numbers from 0 for all folders")


def test_numbers_that_count_no_classes_are_refused(tmp_path: Path) -> None:
    refused(classes(tmp_path, ["0", "99999999999"]), "folder 99999999999 is no class number")


def test_one_number_spelled_twice(tmp_path: Path) -> None:
    refused(classes(tmp_path, ["0", "1", "01"]), "the same number")


def test_what_is_hidden_or_left_by_a_tool_is_no_class(tmp_path: Path) -> None:
    classes(tmp_path, ["cat", "dog"])
    for name in (".git", ".ipynb_checkpoints", "__MACOSX", "__pycache__", "@eaDir"):
        save(tmp_path / name / "a.png", RAMP)
    save(tmp_path / "cat" / ".ipynb_checkpoints" / "a.png", RAMP)
    for name in ("._a.png", ".DS_Store", ".hidden.jpg"):
        (tmp_path / "cat" / name).write_bytes(b"no picture")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    found = read_examples(tmp_path)
    assert numbers(found, ["cat", "dog"]) == {"cat": 0, "dog": 1}
    assert len(found) == 2
    assert found.notes == ("classes by folder: 0 cat, 1 dog",)


def test_folders_without_pictures_are_no_classes_and_are_said(tmp_path: Path) -> None:
    classes(tmp_path, ["cat", "fox"])
    (tmp_path / "bee").mkdir()
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("none yet")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    found = read_examples(tmp_path)
    assert numbers(found, ["cat", "fox"]) == {"cat": 0, "fox": 1}
    assert found.empty == ("bee", "dog")
    assert said(found, "bee, dog")
    assert said(found, "left out: 2 files")


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda root: save(root / "train" / "cat" / "a.png", RAMP), ("train/cat/a.png lies in a", "--data")),
        (lambda root: save(root / "cat" / "more" / "b.png", RAMP), ("cat/more/b.png lies in a folder",)),
        (lambda root: save(root / "cat" / "more" / "and" / "more" / "b.png", RAMP), ("cat/more/and/more/b.png lies",)),
        (lambda root: (root / "cat" / "up").symlink_to(root), ("cat/up/", "lies in a folder")),
        (lambda root: save(root / "cat" / "b.jp2", RAMP), ("b.jp2", "not read")),
        (lambda root: (root / "cat" / "b.HEIC").write_bytes(b"x"), ("b.HEIC", "not read")),
        (lambda root: save(root / "cat" / "b", RAMP, format="PNG"), ("cat/b", "not read")),
        (lambda root: (root / "cat" / "b.png").write_bytes(b""), ("b.png", "0 bytes")),
        (lambda root: (root / "cat" / "b.png").symlink_to("nowhere"), ("b.png", "cannot be read")),
        (lambda root: (root / "owl").symlink_to("nowhere"), ("owl", "leads nowhere")),
        (lambda root: save(root / "cat" / "b.png", RAMP[:5]), ("2 different sizes", "cat/b.png 8 x 5")),
        (lambda root: save(root / "cat" / "b.gif", RAMP, save_all=True,
                           append_images=[Image.fromarray(255 - RAMP)]), ("b.gif", "2 frames")),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_or_read_is_refused(
    tmp_path: Path, plant: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    plant(classes(tmp_path, ["cat", "dog"]))
    refused(tmp_path, *words)


def test_links_are_followed(tmp_path: Path) -> None:
    classes(tmp_path / "elsewhere", ["cat", "dog"])
    root = tmp_path / "root"
    root.mkdir()
    for name in ("cat", "dog"):
        (root / name).symlink_to(tmp_path / "elsewhere" / name)
    assert numbers(read_examples(root), ["cat", "dog"]) == {"cat": 0, "dog": 1}


def test_endings_in_capitals_and_of_every_kind(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.Jpeg", "c.TIF", "d.gif", "e.ppm", "f.jfif", "g.webp"):
        save(tmp_path / "cat" / name, COLOURS, format={"b.Jpeg": "JPEG", "f.jfif": "JPEG"}.get(name))
    assert len(read_examples(tmp_path)) == 7


def test_grey_beside_colour_becomes_colour_and_is_said(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "a.png", RAMP)
    save(tmp_path / "dog" / "b.png", COLOURS)
    found = read_examples(tmp_path)
    assert np.array_equal(found.images[0], np.repeat(RAMP[..., None], 3, axis=2))
    assert np.array_equal(found.images[1], COLOURS)
    assert said(found, "1 grey pictures beside 1 in colour")


def test_what_was_changed_in_pictures_is_counted(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / "cat" / f"{name}.png", RAMP.astype(np.uint16) * 257)
    found = read_examples(tmp_path)
    assert np.array_equal(found.images[0, ..., 0], RAMP)
    assert said(found, "3 pictures were scaled from 16 bits to 8")


def test_pictures_beside_the_class_folders_are_said(tmp_path: Path) -> None:
    save(classes(tmp_path, ["cat"]) / "sheet.png", RAMP)
    assert said(read_examples(tmp_path), "sheet.png")
    save(tmp_path / "flat" / "a.png", RAMP)
    refused(tmp_path / "flat", "1 pictures lie in it directly")


def test_known_classes_are_found_by_name(tmp_path: Path) -> None:
    root = classes(tmp_path, ["cat", "fox"])
    assert read_examples(root, classes=("ant", "cat", "dog", "fox")).labelled().tolist() == [1, 3]
    with pytest.raises(DataError, match=r"folder 'fox' is no class.*ant, cat"):
        read_examples(root, classes=("ant", "cat"))
