"""Inputs and labels from files: `.npz`, IDX pairs, single pictures, folders of class folders.

Rule 1: what comes out of a file is in the model's wire values, in the order of axes that its wire has; files are only
read.
Rule 2: unit space is float32 [item, channel, height, width] or [item, feature], whatever the wire.
Rule 3: nothing is guessed: what can be read in two ways is refused, and what was left out or changed is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import UNREADABLE, InputSpec
from guard.class_folders import picture_in, read_folders
from guard.data_file import DataFile, Reading, check, class_numbers
from guard.errors import DataError
from guard.idx import idx_files, read_idx_folder, read_idx_pair
from guard.layout import LAST, checked_layout, layout_for
from guard.pictures import PICTURES, read_picture

MAX_UNIT_SHARE = 0.02  # of the model's range: float values that fill no more of it, from its zero on, are in [0, 1]


def read_examples(
    path: str | Path,
    *,
    layout: str | None = None,
    classes: Sequence[str] = (),
    progress: Reading | None = None,
) -> DataFile:
    """Read the inputs of a file or folder, and their labels where it has any.

    `layout` is what the user says of arrays with four axes; `classes` are a bundle's or a
    model's names, by which folders, and labels that are text, are found.

    Raises:
        DataError: `path` is missing, of an unknown kind, damaged, empty, or inputs and labels do not match.
    """
    file = Path(path)
    if file.is_dir():
        examples = read_folder(file, classes, progress)
    elif not file.exists():
        raise DataError(f"{file} does not exist; wanted an .npz, an IDX file or a folder of class folders")
    elif file.suffix.lower() in (".npz", ".npy"):
        examples = read_npz_examples(file, classes)
    elif file.suffix.lower() in PICTURES:
        picture = read_picture(file)
        notes = tuple(f"the picture was {change}" for change in picture.changes)
        examples = DataFile(picture.values[None], None, str(file), LAST, notes=notes)
    elif "idx" in file.name.lower() or file.suffix.lower() in (".idx", ".gz"):
        examples = read_idx_pair(file)
    else:
        raise DataError(
            f"{file} is of no known kind; wanted an .npz, an IDX file, a picture or a folder of class folders"
        )
    return check(normal_form(examples, checked_layout(layout)))


def read_folder(folder: Path, classes: Sequence[str], progress: Reading | None) -> DataFile:
    """Read a folder's one IDX pair, or its class folders. Raises DataError where it holds both, or neither."""
    idx = idx_files(folder)
    if not idx:
        return read_folders(folder, classes, progress)
    if below := next((found for entry in sorted(folder.iterdir()) if (found := picture_in(entry))), None):
        seen = min(idx.values()).name
        raise DataError(f"{folder} holds {seen} and {below.relative_to(folder)}; wanted IDX files or class folders")
    return read_idx_folder(folder)


def read_npz_examples(file: Path, classes: Sequence[str] = ()) -> DataFile:
    """Read `images` and `labels` of an .npz, or an .npy of images; never unpickled. Raises DataError."""
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return DataFile(loaded, None, str(file))
            names = list(loaded.files)
            if "images" not in names:
                raise DataError(f"{file} has arrays {names}; wanted `images` and, for training, `labels`")
            images, labels = loaded["images"], loaded["labels"] if "labels" in names else None
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
    """Return examples as bytes or float32, images with all their four axes. Raises DataError for other inputs."""
    images = examples.images
    if images.dtype == np.uint8 or images.dtype.kind == "f":
        if images.ndim == 3:  # grey
            examples = replace(examples, layout=LAST)
            images = images[..., None]
        if images.ndim in (2, 4):
            with np.errstate(over="ignore"):  # what becomes infinite is found by the check
                native = images if images.dtype == np.uint8 else images.astype(np.float32)
            return replace(examples, images=native, layout=examples.layout or (layout if images.ndim == 4 else None))
    raise DataError(
        f"{examples.source}: images are {images.dtype} {list(images.shape)}; wanted uint8 or float32, as "
        "[item, height, width, channel], [item, channel, height, width], [item, height, width] or [item, feature]"
    )


def to_wire(
    images: NDArray[Any], spec: InputSpec, source: str = "inputs", *, layout: str | None = None
) -> NDArray[Any]:
    """Convert inputs from a file's form into the model's wire values, in its layout.

    Bytes of images are 0 black to 255 white of the model's range; all others are in the model's values already.

    Raises:
        DataError: the shape or the values do not fit this model, or the order of axes is not clear.
    """
    if images.ndim == 4 and len(spec.shape) == 3:
        found = layout or layout_for(images.shape[1:], spec.shape, source)
        images = images.transpose(0, 3, 1, 2) if found == LAST else images
    check_shape(images, spec, source)
    if images.dtype == np.uint8 and images.ndim == 4:
        return spec.box.from_unit(np.ascontiguousarray(images).astype(np.float32) / np.float32(255))
    low, high = spec.box.bounds
    unit = (images.astype(np.float32) - low) / (high - low)
    check_box(images, unit, spec, source)
    check_steps(images, spec, source)
    if spec.dtype == np.uint8:
        return spec.box.from_unit(unit.clip(0.0, 1.0))
    return np.ascontiguousarray(spec.box.to_layout(images.astype(spec.dtype)))


def check_steps(images: NDArray[Any], spec: InputSpec, source: str) -> None:
    """Raise DataError for values that are in [0, 1], or no whole numbers, where the model's range is far wider."""
    low, high = float(images.min()), float(images.max())
    widest = max(b - a for a, b in zip(spec.low, spec.high, strict=True))
    whole = bool((np.abs(images - np.rint(images)) <= 1e-3).all())
    if not whole and low >= 0 and high <= min(1, MAX_UNIT_SHARE * widest):
        raise DataError(
            f"{source}: values span [{low:g}, {high:g}] of the model's range [{min(spec.low):g}, {max(spec.high):g}], "
            "all but black; wanted the model's own values: multiply them, or hand over uint8"
        )
    if not whole and spec.dtype == np.uint8:
        raise DataError(
            f"{source}: the model takes bytes, and values such as {odd(images):g} are no whole numbers; "
            "wanted uint8 images, or whole numbers in the model's range"
        )


def odd(images: NDArray[Any]) -> float:
    """Return the first value that is no whole number."""
    values = images.reshape(-1)
    return float(values[int(np.argmax(np.abs(values - np.rint(values)) > 1e-3))])


def check_box(images: NDArray[Any], unit: NDArray[np.float32], spec: InputSpec, source: str) -> None:
    """Raise DataError for values outside the model's box, naming the channel or feature that leaves it furthest."""
    beyond = np.maximum(-unit, unit - 1)
    if beyond.max() <= 1e-3:
        return
    worst = int(beyond.max(axis=tuple(axis for axis in range(unit.ndim) if axis != 1)).argmax())
    several = len(spec.low) > 1
    values, place = (images[:, worst], worst) if several else (images, 0)
    where = f" of {'channel' if len(spec.shape) == 3 else 'feature'} {worst}" if several else ""
    raise DataError(
        f"{source}: values{where} span [{values.min():g}, {values.max():g}], outside the model's range "
        f"[{spec.low[place]:g}, {spec.high[place]:g}]; set --range (or --mean and --std) to what the model expects"
    )


def check_shape(images: NDArray[Any], spec: InputSpec, source: str) -> None:
    if images.shape[1:] != spec.shape:
        raise DataError(f"{source}: one item has shape {list(images.shape[1:])}; the model takes {list(spec.shape)}")
