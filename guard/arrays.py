"""Inputs and labels from files: `.npz`, IDX pairs, single pictures, folders of class folders.

Rule 1: what comes out of a file is in the model's wire values, in the order of axes that its wire has; files are only
read.
Rule 2: unit space is float32 [item, channel, height, width] or [item, feature], whatever the wire.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import UNREADABLE, InputSpec
from guard.errors import DataError

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class DataFile:
    """Inputs in the form in which their file holds them, and their labels."""

    # uint8 [item, height, width, channel], float32 [item, channel, height, width] or [item, feature]
    images: NDArray[Any]
    labels: NDArray[np.int64] | None  # [item]
    source: str

    def __len__(self) -> int:
        return len(self.images)

    def labelled(self) -> NDArray[np.int64]:
        """Return the labels [item]. Raises DataError when the file has none."""
        if self.labels is None:
            raise DataError(f"{self.source} has no labels; an array `labels` [item] of class numbers is needed here")
        return self.labels


def read_examples(path: str | Path) -> DataFile:
    """Read the inputs of a file or folder, and their labels where it has any.

    Raises:
        DataError: `path` is missing, of an unknown kind, damaged, empty, or inputs and labels do not match.
    """
    file = Path(path)
    if file.is_dir():
        pairs = sorted(p for p in file.iterdir() if "idx3" in p.name or "idx4" in p.name)
        examples = read_idx_pair(pairs[0]) if pairs else read_folders(file)
    elif not file.exists():
        raise DataError(f"{file} does not exist; wanted an .npz, an IDX file or a folder of class folders")
    elif file.suffix in (".npz", ".npy"):
        examples = read_npz_examples(file)
    elif "idx" in file.name or file.suffix in (".idx", ".gz"):
        examples = read_idx_pair(file)
    elif file.suffix.lower() in PICTURES:
        examples = DataFile(read_picture(file)[None], None, str(file))
    else:
        raise DataError(
            f"{file} is of no known kind; wanted an .npz, an IDX file, a picture or a folder of class folders"
        )
    check(examples)
    return examples


def check(examples: DataFile) -> None:
    images, labels = examples.images, examples.labels
    if len(images) == 0:
        raise DataError(f"{examples.source} holds no items")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images.reshape(len(images), -1)).all(axis=1))[0])
        raise DataError(f"{examples.source}: item {bad} holds NaN or infinity; every value must be finite")
    if labels is not None:
        if labels.ndim != 1 or len(labels) != len(images):
            raise DataError(f"{examples.source}: {len(images)} inputs but labels of shape {list(labels.shape)}")
        if (labels < 0).any():
            raise DataError(
                f"{examples.source}: label {int(labels.min())} is negative; labels are class numbers from 0"
            )


def read_npz_examples(file: Path) -> DataFile:
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return DataFile(normal_form(loaded, str(file)), None, str(file))
            names = list(loaded.files)
            if "images" not in names:
                raise DataError(f"{file} has arrays {names}; wanted `images` and, for training, `labels`")
            labels = loaded["labels"] if "labels" in names else None
            images = loaded["images"]
    except UNREADABLE as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if labels is not None and labels.dtype.kind not in "iu":
        raise DataError(f"{file}: labels are {labels.dtype}; wanted whole class numbers")
    return DataFile(normal_form(images, str(file)), None if labels is None else labels.astype(np.int64), str(file))


def normal_form(images: NDArray[Any], source: str) -> NDArray[Any]:
    if images.dtype == np.uint8 or images.dtype.kind == "f":
        if images.dtype == np.uint8 and images.ndim == 3:
            images = images[..., None]
        if images.ndim in (2, 4):
            return images if images.dtype == np.uint8 else images.astype(np.float32)
    raise DataError(
        f"{source}: images are {images.dtype} {list(images.shape)}; wanted uint8 [item, height, width, channel], "
        "float32 [item, channel, height, width] or float32 [item, feature]"
    )


def read_idx_pair(file: Path) -> DataFile:
    labels_file = file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1"))
    labels = None
    if labels_file != file and labels_file.exists():
        labels = read_idx(labels_file).astype(np.int64)
    return DataFile(normal_form(read_idx(file), str(file)), labels, str(file))


def read_idx(file: Path) -> NDArray[Any]:
    """Read an IDX array (the MNIST family's format), gzipped or not. Raises DataError."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        zero, kind, axes = struct.unpack(">HBB", raw[:4])
        if zero != 0 or kind not in IDX_TYPES:
            raise DataError(f"{file} is no IDX file: it begins with {raw[:4].hex()}")
        shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
        array = np.frombuffer(raw, dtype=IDX_TYPES[kind], offset=4 + 4 * axes)
        return array.reshape(shape).astype(np.dtype(IDX_TYPES[kind]).newbyteorder("="))
    except (OSError, EOFError, struct.error, ValueError, zlib.error) as error:
        raise DataError(f"{file} cannot be read as IDX: {error}") from error


def read_folders(root: Path) -> DataFile:
    """Read a folder of class folders; the class number is a folder's place in the sorted order."""
    classes = sorted(p for p in root.iterdir() if p.is_dir())
    pictures = [
        (p, number)
        for number, folder in enumerate(classes)
        for p in sorted(folder.iterdir())
        if p.suffix.lower() in PICTURES
    ]
    if not pictures:
        raise DataError(
            f"{root} holds neither IDX files nor class folders with pictures ({', '.join(sorted(PICTURES))})"
        )
    images = [read_picture(p) for p, _ in pictures]
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise DataError(
            f"{root}: pictures have {len(shapes)} different sizes, e.g. {sorted(shapes)[:3]}; they must be of one size"
        )
    return DataFile(np.stack(images), np.asarray([number for _, number in pictures], dtype=np.int64), str(root))


def read_picture(file: Path) -> NDArray[np.uint8]:
    """Read a picture as bytes [height, width, channel]. Raises DataError."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError(
            f"reading {file} takes Pillow; install inference-guard[offline], or hand over an .npz"
        ) from error
    try:
        with Image.open(file) as picture:
            mode = "L" if picture.mode in ("1", "L", "I;16") else "RGB"
            array = np.asarray(picture.convert(mode), dtype=np.uint8)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{file} cannot be read as a picture: {error}") from error
    return array[..., None] if array.ndim == 2 else array


def to_wire(images: NDArray[Any], spec: InputSpec, source: str = "inputs") -> NDArray[Any]:
    """Convert inputs from a file's form into the model's wire values, in its layout.

    Raises:
        DataError: the shape or the values do not fit this model.
    """
    if images.dtype == np.uint8 and images.ndim == 4:
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        check_shape(channels_first, spec, source)
        return spec.box.from_unit(channels_first.astype(np.float32) / np.float32(255))
    check_shape(images, spec, source)
    low, high = spec.box.bounds
    unit = (images.astype(np.float32) - low) / (high - low)
    check_box(images, unit, spec, source)
    if spec.dtype == np.uint8:
        return spec.box.from_unit(unit.clip(0.0, 1.0))
    return np.ascontiguousarray(spec.box.to_layout(images.astype(spec.dtype)))


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
