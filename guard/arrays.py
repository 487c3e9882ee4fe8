"""Inputs and labels from files: `.npz`, IDX pairs, single pictures, folders of class folders.

Rule 1: what comes out of a file is in the model's wire values, in the order of axes that its wire has; files are only
read.
Rule 2: unit space is float32 [item, channel, height, width], [item, channel, time] or [item, feature], whatever the
wire.
Rule 3: nothing is guessed: what can be read in two ways is refused, and what was left out or changed is said.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.array_room import float_parts, new_array
from guard.arrow_files import (
    PARQUET,
    is_saved_dataset,
    open_parquet,
    open_parquet_folder,
    open_saved_dataset,
    parquet_parts,
)
from guard.arrow_table import read_table
from guard.bundle import UNREADABLE
from guard.class_folders import picture_in, read_folders
from guard.columns import ColumnChoice
from guard.csv_file import TEXT_TABLES, read_csv
from guard.data_file import DataFile, Reading, check, class_numbers
from guard.errors import DataError, first_line
from guard.feature_values import check_values
from guard.features import only_names
from guard.idx import idx_files, read_idx_folder, read_idx_pair
from guard.items_on_disk import Items, ItemsOnDisk
from guard.layout import LAST, channels_in_front, checked_layout
from guard.manifest import InputSpec
from guard.pictures import PICTURES, read_picture
from guard.stored_array import open_large_array
from guard.value_span import ValueSpan, check_box, check_bytes, check_values_fit

ALL_COLUMNS = ColumnChoice()
KINDS = "an .npz, an IDX file, a .csv, a .parquet, a picture, or a folder of class folders or of a data set"


def read_examples(
    path: str | Path,
    *,
    layout: str | None = None,
    classes: Sequence[str] = (),
    choice: ColumnChoice = ALL_COLUMNS,
    progress: Reading | None = None,
    stream: bool = False,
) -> DataFile:
    """Read the inputs of a file or folder, and their labels where it has any.

    `stream`: pictures and arrays that do not fit into memory stay in their files.

    `layout` is what the user says of arrays with three or four axes, `choice` of a table's columns; `classes` are a
    bundle's or a model's names, by which folders, and labels that are text, are found.

    Raises:
        DataError: `path` is missing, of an unknown kind, damaged, empty, or inputs and labels do not match.
    """
    file = Path(path)
    try:
        return check(normal_form(read_any(file, classes, choice, progress, stream=stream), checked_layout(layout)))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {first_line(error)}") from error


def read_any(
    file: Path, classes: Sequence[str], choice: ColumnChoice, progress: Reading | None, *, stream: bool
) -> DataFile:
    """Read a file or folder by its kind. Raises DataError for one that is missing, or of no known kind."""
    if file.is_dir():
        return read_folder(file, classes, choice, progress, stream=stream)
    if not file.exists():
        raise DataError(f"{file} does not exist; wanted {KINDS}")
    if file.suffix.lower() in (".npz", ".npy"):
        return read_npz_examples(file, classes, stream=stream)
    if file.suffix.lower() in PICTURES:
        picture = read_picture(file)
        notes = tuple(f"the picture was {change}" for change in picture.changes)
        return DataFile(picture.values[None], None, str(file), LAST, notes=notes)
    if file.name.lower().endswith(TEXT_TABLES):
        return read_csv(file, choice, classes)
    if file.suffix.lower() in PARQUET:
        return read_table(open_parquet([file], str(file)), choice, classes, progress, stream=stream)
    if "idx" in file.name.lower() or file.suffix.lower() in (".idx", ".gz"):
        return read_idx_pair(file)
    raise DataError(f"{file} is of no known kind; wanted {KINDS}")


def read_folder(
    folder: Path, classes: Sequence[str], choice: ColumnChoice, progress: Reading | None, *, stream: bool
) -> DataFile:
    """Read a folder's saved data set, parts of a Parquet table, IDX pair or class folders.

    Raises:
        DataError: the folder holds none of them, or pictures beside an IDX pair.
    """
    if is_saved_dataset(folder):
        return read_table(open_saved_dataset(folder), choice, classes, progress, stream=stream)
    if tables := parquet_parts(folder):
        alone(folder, tables[0])
        return read_table(open_parquet_folder(folder), choice, classes, progress, stream=stream)
    idx = idx_files(folder)
    if not idx:
        return read_folders(folder, classes, progress, stream=stream)
    alone(folder, min(idx.values()))
    return read_idx_folder(folder)


def alone(folder: Path, seen: Path) -> None:
    """Raise DataError where a folder holds class folders with pictures beside a file of another kind."""
    if below := next((found for entry in sorted(folder.iterdir()) if (found := picture_in(entry))), None):
        raise DataError(
            f"{folder} holds {seen.name} and {below.relative_to(folder)}; wanted a table, IDX files or class folders "
            "alone: name the file, or move it"
        )


def read_npz_examples(file: Path, classes: Sequence[str] = (), *, stream: bool = False) -> DataFile:
    """Read `images` and `labels` of an .npz, or an .npy of images; never unpickled. Raises DataError."""
    try:
        large = open_large_array(file, "images") if stream else None
        with file.open("rb") as opened:
            if large is not None and not zipfile.is_zipfile(opened):
                return DataFile(large, None, str(file))
            opened.seek(0)
            loaded = np.load(opened, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return DataFile(loaded, None, str(file))
            names = list(loaded.files)
            if "images" not in names:
                raise DataError(f"{file} has arrays {names}; wanted `images` and, for training, `labels`")
            images = array_in(loaded, "images", file) if large is None else large
            labels = array_in(loaded, "labels", file) if "labels" in names else None
    except UNREADABLE as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    others = [name for name in names if name not in ("images", "labels")]
    return DataFile(
        images,
        None if labels is None else class_numbers(labels, str(file), classes),
        str(file),
        notes=(f"arrays left out: {', '.join(others)}",) if others else (),
        labels_wanted=f"an array `labels` [item] of class numbers beside {names}",
    )


def array_in(loaded: Any, name: str, file: Path) -> NDArray[Any]:
    """Return an array of an opened .npz. Raises DataError for a member that is none."""
    found = loaded[name]
    if not isinstance(found, np.ndarray):
        raise DataError(f"{file}: {name} is no array in numpy's format; wanted what numpy.savez writes")
    return found


def normal_form(examples: DataFile, layout: str | None) -> DataFile:
    """Return examples as bytes or float32, of as many axes as some kind of input has. Raises DataError for others.

    Arrays of three axes are grey images or series, as the model's input decides.
    """
    images = examples.images
    if (images.dtype == np.uint8 or images.dtype.kind == "f") and images.ndim in (2, 3, 4):
        with np.errstate(over="ignore"):  # what becomes infinite is found by the check
            native = images if images.dtype == np.uint8 else as_float32(images)
        return replace(examples, images=native, layout=examples.layout or (layout if images.ndim > 2 else None))
    raise DataError(
        f"{examples.source}: images are {images.dtype} {list(images.shape)}; wanted uint8 or float32, as "
        "[item, height, width, channel], [item, channel, height, width], [item, height, width], [item, time, channel], "
        "[item, channel, time] or [item, feature]"
    )


def as_float32(images: Items) -> Items:
    """Return inputs as float32."""
    if isinstance(images, ItemsOnDisk):
        return images.mapped(images.shape[1:], np.dtype(np.float32), lambda some: some.astype(np.float32))
    return images.astype(np.float32)


def to_wire(
    images: NDArray[Any], spec: InputSpec, source: str = "inputs", *, layout: str | None = None
) -> NDArray[Any]:
    """Convert inputs from a file's form into the model's wire values, in its layout; large ones lie on disk.

    Bytes of images are 0 black to 255 white of the model's range; all others are in the model's values already.

    Raises:
        DataError: the shape or the values do not fit this model, or the order of axes is not clear.
    """
    wire: NDArray[Any] | None = None
    for part, values in wire_parts(images, spec, source, layout=layout):
        if wire is None:
            wire = new_array((len(images), *values.shape[1:]), values.dtype, source)
        wire[part] = values
    if wire is None:
        raise DataError(f"{source} holds no items; wanted at least one")
    return wire


def wire_parts(
    images: NDArray[Any], spec: InputSpec, source: str, *, layout: str | None = None
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield the wire values of inputs part by part, as `to_wire` gives them all, after all are checked."""
    images = channels_in_front(images, layout, spec.shape, source)
    check_shape(images.shape[1:], spec, source)
    pixels = are_pixels(images, spec)
    if not only_names(spec.features):
        check_values(images, spec.features, source)
    elif pixels:
        check_bytes(int(images.max()), len(images), source)
    else:
        span = ValueSpan.of(images)
        check_box(span, spec, source)
        check_values_fit(span, spec, source)
    for part in float_parts(images):
        yield part, wire_values(images[part], spec, pixels=pixels)


def are_pixels(images: Items, spec: InputSpec) -> bool:
    """Tell whether inputs are bytes of images, black to white."""
    return images.dtype == np.uint8 and spec.axes.pictures


def value_notes(images: NDArray[Any], spec: InputSpec, source: str) -> tuple[str, ...]:
    """Return what is odd in the values of a table, by its features. Raises DataError as `wire_parts` does."""
    return () if only_names(spec.features) else tuple(check_values(images, spec.features, source))


def wire_values(images: NDArray[Any], spec: InputSpec, *, pixels: bool) -> NDArray[Any]:
    """Return the wire values of inputs, channels first, that are checked: pixels, or the model's own values."""
    if pixels:
        return spec.box.from_unit(np.ascontiguousarray(images).astype(np.float32) / np.float32(255))
    if spec.dtype == np.uint8:
        low, high = spec.box.bounds
        return spec.box.from_unit(((images.astype(np.float32) - low) / (high - low)).clip(0.0, 1.0))
    return np.ascontiguousarray(spec.box.to_layout(images.astype(spec.dtype)))


def check_shape(sizes: tuple[int, ...], spec: InputSpec, source: str) -> None:
    if sizes != spec.shape:
        raise DataError(f"{source}: one item has shape {list(sizes)}; the model takes {list(spec.shape)}")
