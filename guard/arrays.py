"""Inputs and labels from files: `.npz`, IDX pairs, single pictures, folders of class folders.

Rule 1: what comes out of a file is in the model's wire values, in the order of axes that its wire has; files are only
read.
Rule 2: unit space is float32 [item, channel, height, width], [item, channel, time] or [item, feature], whatever the
wire.
Rule 3: nothing is guessed: what can be read in two ways is refused, and what was left out or changed is said.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.array_room import new_array, parts
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
from guard.errors import DataError
from guard.feature_values import check_values
from guard.features import only_names
from guard.idx import idx_files, read_idx_folder, read_idx_pair
from guard.items_on_disk import Items, ItemsOnDisk
from guard.layout import LAST, channels_in_front, checked_layout
from guard.manifest import InputSpec
from guard.pictures import PICTURES, read_picture
from guard.stored_array import open_large_array

ALL_COLUMNS = ColumnChoice()
KINDS = "an .npz, an IDX file, a .csv, a .parquet, a picture, or a folder of class folders or of a data set"
FLOAT_BYTES = 4
MAX_UNIT_SHARE = 0.02  # of the model's range: float values that fill no more of it, from its zero on, are in [0, 1]


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
    if file.is_dir():
        examples = read_folder(file, classes, choice, progress, stream=stream)
    elif not file.exists():
        raise DataError(f"{file} does not exist; wanted {KINDS}")
    elif file.suffix.lower() in (".npz", ".npy"):
        examples = read_npz_examples(file, classes, stream=stream)
    elif file.suffix.lower() in PICTURES:
        picture = read_picture(file)
        notes = tuple(f"the picture was {change}" for change in picture.changes)
        examples = DataFile(picture.values[None], None, str(file), LAST, notes=notes)
    elif file.name.lower().endswith(TEXT_TABLES):
        examples = read_csv(file, choice, classes)
    elif file.suffix.lower() in PARQUET:
        examples = read_table(open_parquet([file], str(file)), choice, classes, progress, stream=stream)
    elif "idx" in file.name.lower() or file.suffix.lower() in (".idx", ".gz"):
        examples = read_idx_pair(file)
    else:
        raise DataError(f"{file} is of no known kind; wanted {KINDS}")
    return check(normal_form(examples, checked_layout(layout)))


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
            images = loaded["images"] if large is None else large
            labels = loaded["labels"] if "labels" in names else None
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
    elif not pixels:
        span = ValueSpan.of(images)
        check_box(span, spec, source)
        check_steps(span, spec, source)
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


def float_parts(images: NDArray[Any]) -> Iterator[slice]:
    """Cut inputs into parts by the memory that an item takes as float32."""
    return parts(len(images), FLOAT_BYTES * math.prod(images.shape[1:]))


@dataclass(frozen=True, eq=False)
class ValueSpan:
    """The values that inputs fill, and one of them that is no whole number, where there is any."""

    low: NDArray[np.float32]  # [channel] or [feature]
    high: NDArray[np.float32]
    broken: float | None

    @staticmethod
    def of(images: NDArray[Any]) -> ValueSpan:
        """Return the span of inputs whose channels are first."""
        others = tuple(axis for axis in range(images.ndim) if axis != 1)
        low, high = (found.astype(np.float32) for found in (images.min(axis=others), images.max(axis=others)))
        return ValueSpan(low, high, odd(images))

    def __or__(self, other: ValueSpan) -> ValueSpan:
        """Return the span of both together; of two broken values the first."""
        broken = other.broken if self.broken is None else self.broken
        return ValueSpan(np.minimum(self.low, other.low), np.maximum(self.high, other.high), broken)


def check_steps(span: ValueSpan, spec: InputSpec, source: str) -> None:
    """Raise DataError for values that are in [0, 1], or no whole numbers, where the model's range is far wider."""
    if span.broken is None:
        return
    low, high = float(span.low.min()), float(span.high.max())
    widest = max(b - a for a, b in zip(spec.low, spec.high, strict=True))
    if low >= 0 and high <= min(1, MAX_UNIT_SHARE * widest):
        raise DataError(
            f"{source}: values span [{low:g}, {high:g}] of the model's range [{min(spec.low):g}, {max(spec.high):g}], "
            "all but black; wanted the model's own values: multiply them, or hand over uint8"
        )
    if spec.dtype == np.uint8:
        raise DataError(
            f"{source}: the model takes bytes, and values such as {span.broken:g} are no whole numbers; "
            "wanted uint8 images, or whole numbers in the model's range"
        )


def odd(images: NDArray[Any]) -> float | None:
    """Return the first value that is no whole number, or None."""
    if images.dtype == np.uint8:
        return None
    for part in float_parts(images):
        values = images[part].reshape(-1)
        broken = np.abs(values - np.rint(values)) > 1e-3
        if broken.any():
            return float(values[int(np.argmax(broken))])
    return None


def check_box(span: ValueSpan, spec: InputSpec, source: str) -> None:
    """Raise DataError for values outside the model's box, naming the channel or feature that leaves it furthest."""
    least, most = span.low, span.high
    low, high = (bound.reshape(-1) for bound in spec.box.bounds)
    beyond = np.maximum((low - least) / (high - low), (most - low) / (high - low) - 1)  # [channel] or [feature]
    if beyond.max() <= 1e-3:
        return
    worst = int(beyond.argmax())
    several = len(spec.low) > 1
    bottom, top = (least[worst], most[worst]) if several else (least.min(), most.max())
    place = worst if several else 0
    where = f" of {spec.axes.part} {worst}" if several else ""
    raise DataError(
        f"{source}: values{where} span [{bottom:g}, {top:g}], outside the model's range "
        f"[{spec.low[place]:g}, {spec.high[place]:g}]; set --range (or --mean and --std) to what the model expects"
    )


def check_shape(sizes: tuple[int, ...], spec: InputSpec, source: str) -> None:
    if sizes != spec.shape:
        raise DataError(f"{source}: one item has shape {list(sizes)}; the model takes {list(spec.shape)}")
