"""Folders of class folders: which folder is which class, and the pictures in them.

Rule 1: a class is a visible folder with pictures; what is hidden, left by a tool or empty is none, and it is said.
Rule 2: names that are all whole numbers are class numbers, from 0 on or 1 to K; all others are sorted as text,
capitals first. Example: 0, 1, 2, 10 are the classes 0, 1, 2 and 10; ant, bee, cat are 0, 1 and 2.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guard.array_room import fits_memory
from guard.data_file import DataFile, Reading
from guard.errors import DataError
from guard.idx import idx_files
from guard.items_on_disk import Items
from guard.picture_files import pictures_on_disk
from guard.picture_stack import PictureStack
from guard.pictures import PICTURES, looks_like_picture, read_picture
from guard.read_ahead import read_ahead

MAX_NUMBERED_CLASSES = 100_000
TOOLS = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "lost+found", "system volume information"}
# Pictures and arrays of kinds that are not read: a class without them would be a part of itself.
UNREAD = {
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".tga", ".psd", ".svg", ".ico", ".exr", ".hdr", ".dcm"),
    *(".dng", ".cr2", ".nef", ".arw", ".raw", ".npy", ".npz", ".mat", ".pcx", ".eps", ".pfm"),
}


ARRAYS = {".csv", ".tsv", ".npz", ".npy", ".gz"}  # files that are named themselves


@dataclass(frozen=True)
class ClassFolder:
    """A visible folder, the pictures in it, and its other files."""

    path: Path
    pictures: tuple[Path, ...]
    others: tuple[Path, ...]


def read_folders(
    root: Path, known: Sequence[str] = (), progress: Reading | None = None, *, stream: bool = False
) -> DataFile:
    """Read a folder of class folders; `known` are the class names by number that a bundle has already.

    `stream`: pictures that do not fit into memory stay in their files.

    Raises:
        DataError: no class is found or none of that name is known, a picture is unreadable or of another size.
    """
    entries = sorted(entry for entry in root.iterdir() if visible(entry))
    folders = [open_folder(entry) for entry in entries if not entry.is_file()]
    stray = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in PICTURES]
    classes = [folder for folder in folders if folder.pictures]
    if not classes:
        raise DataError(none_found(root, folders, stray))
    numbers, names = number_of([folder.path.name for folder in classes], root, known)
    classes = sorted(classes, key=lambda folder: numbers[folder.path.name])
    images, changes = read_all(
        [picture for folder in classes for picture in folder.pictures], root, progress, stream=stream
    )
    labels = [numbers[folder.path.name] for folder in classes for _ in folder.pictures]
    empty = tuple(folder.path.name for folder in folders if not folder.pictures)
    left_out = [*stray, *(other for folder in folders for other in folder.others)]
    return DataFile(
        images,
        np.asarray(labels, dtype=np.int64),
        str(root),
        layout="NHWC",
        classes=names,
        empty=empty,
        notes=(*remarks(numbers, names), *empty_note(empty), *left_out_note(root, left_out), *changes),
    )


def visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower() not in TOOLS


def open_folder(path: Path) -> ClassFolder:
    """List a folder's pictures. Raises DataError for pictures of unread kinds, and for those in folders below."""
    if not path.is_dir():
        raise DataError(f"{path} is a link that leads nowhere; wanted a class folder: remove it, or mend it")
    pictures, others = [], []
    for entry in sorted(entry for entry in path.iterdir() if visible(entry)):
        if entry.is_dir():
            if below := picture_below(entry):
                raise DataError(
                    f"{below} lies in a folder of a class folder; wanted class folders with pictures directly in "
                    f"them: name the folder above the classes, as --data {path}, or move the pictures up"
                )
        elif entry.suffix.lower() in PICTURES:
            pictures.append(entry)
        elif entry.suffix.lower() in UNREAD or looks_like_picture(entry):
            raise DataError(f"{entry} is of a kind that is not read; wanted {', '.join(sorted(PICTURES))} by its name")
        else:
            others.append(entry)
    return ClassFolder(path, tuple(pictures), tuple(others))


def picture_in(entry: Path) -> Path | None:
    """Return the first picture of what may be a class folder, or None."""
    return picture_below(entry) if entry.is_dir() and visible(entry) else None


def picture_below(folder: Path) -> Path | None:
    """Return the first picture at any depth below a folder, or None; links to further folders are not followed."""
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if visible(Path(name)))
        for file in (Path(base, name) for name in sorted(files) if visible(Path(name))):
            if file.suffix.lower() in PICTURES | UNREAD or looks_like_picture(file):
                return file
    return None


def number_of(names: Sequence[str], root: Path, known: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the class number of each folder, and the names by number. Raises DataError."""
    check_names(names, root)
    if known:
        if all(re.fullmatch(r"[0-9]+", name) for name in (*known, *names)) and in_place(known):
            return {name: int(name) for name in names}, tuple(known)  # further numbers are further classes
        if unknown := [name for name in names if name not in known]:
            raise DataError(
                f"{root}: folder {unknown[0]!r} is no class; wanted one of those known, {', '.join(known)}: rename it"
            )
        return {name: list(known).index(name) for name in names}, tuple(known)
    numbered = [name for name in names if re.fullmatch(r"-?[0-9]+", name)]
    if len(numbered) < len(names) or any(int(name) < 0 for name in numbered):
        places = {name: number for number, name in enumerate(sorted(names))}
        if moved := [name for name in numbered if int(name) != places[name]]:
            raise DataError(
                f"{root}: folder {moved[0]!r} would be class {places[moved[0]]} beside {sorted(names)[:12]}; wanted "
                "whole numbers from 0 for all folders, or words for all"
            )
        return places, tuple(sorted(names))
    values = {name: int(name) for name in names}
    ordered = sorted(values.values())
    if len(set(ordered)) < len(ordered):
        twice = [name for name in names if ordered.count(values[name]) > 1]
        raise DataError(f"{root}: folders {' and '.join(twice[:2])} are the same number; wanted one folder a class")
    first = 0 if ordered[0] == 0 else 1
    if ordered[-1] > MAX_NUMBERED_CLASSES:
        raise DataError(
            f"{root}: folder {ordered[-1]} is no class number; wanted 0 to {MAX_NUMBERED_CLASSES}, or words"
        )
    if first == 1 and ordered != list(range(1, len(ordered) + 1)):
        raise DataError(
            f"{root}: folders {', '.join(map(str, ordered[:12]))} are numbers neither from 0 nor 1 to "
            f"{len(ordered)}, so their classes are not known; name them by class number from 0, or by words"
        )
    spelled = {value: name for name, value in values.items()}
    every = tuple(spelled.get(value, str(value)) for value in range(first, ordered[-1] + 1))
    return {name: value - first for name, value in values.items()}, every


def check_names(names: Sequence[str], root: Path) -> None:
    """Raise DataError for names that no text can hold, or of which two differ by next to nothing."""
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{root}: the name of folder {name!r} is no UTF-8; rename it") from error
    spelled: dict[str, str] = {}
    for name in names:
        other = spelled.setdefault(unicodedata.normalize("NFC", name).strip(), name)
        if other != name:
            raise DataError(f"{root}: folders {other!r} and {name!r} may be the same class; wanted one folder a class")


def in_place(known: Sequence[str]) -> bool:
    """Tell whether names are the numbers of their classes."""
    return [int(name) for name in known] == list(range(len(known)))


def remarks(numbers: dict[str, int], names: tuple[str, ...]) -> list[str]:
    """Say in which order classes are, and where that may surprise."""
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names[:12])) + (", …" if names[12:] else "")
    notes = [f"classes by folder: {listed}"]
    if absent := [name for name in names if name not in numbers]:
        notes.append(f"classes without items: {', '.join(absent[:12])}")
    if sorted(names, key=natural) != list(names) and not all(name.isdigit() for name in names):
        notes.append("folders are sorted as text, so that 10 stands before 2")
    return notes


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which numbers within names count as numbers."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]


def empty_note(empty: Sequence[str]) -> list[str]:
    return [f"folders without a picture, which are no classes: {', '.join(empty[:12])}"] if empty else []


def left_out_note(root: Path, files: Sequence[Path]) -> list[str]:
    if not files:
        return []
    return [f"left out: {len(files)} files in no class or no pictures, such as {files[0].relative_to(root)}"]


def none_found(root: Path, folders: Sequence[ClassFolder], stray: Sequence[Path]) -> str:
    """Return what was found in place of classes, and what to do."""
    text = f"{root} holds neither tables, IDX files nor class folders with pictures ({', '.join(sorted(PICTURES))})"
    if stray:
        return f"{text}; {len(stray)} pictures lie in it directly: move each into a folder of its class"
    tables = [entry.name for entry in sorted(root.iterdir()) if entry.suffix.lower() in ARRAYS and visible(entry)]
    if tables:
        return f"{text}; it has {', '.join(tables[:12])}: name one of them"
    if deeper := [folder.path for folder in folders if idx_files(folder.path)]:
        return f"{text}; {deeper[0]} has IDX files: name one of them"
    return text


def read_all(files: Sequence[Path], root: Path, progress: Reading | None, *, stream: bool) -> tuple[Items, list[str]]:
    """Return pictures [item, height, width, channel] and what was changed; grey beside colour becomes colour."""
    if stream and not fits_memory((len(files), *read_picture(files[0]).values.shape)):
        return pictures_on_disk(files, root, progress), []
    stack = PictureStack(len(files), str(root))
    for done, (file, picture) in enumerate(zip(files, read_ahead(read_picture, files), strict=True), start=1):
        stack.add(picture, str(file.relative_to(root)))
        if progress is not None:
            progress(done, len(files))
    return stack.finish()
