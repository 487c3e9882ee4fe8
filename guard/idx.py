"""IDX files, the MNIST family's format: a file of images and a file of labels beside it, gzipped or not.

Rule 1: labels belong to images by their names alone: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`.
Rule 2: a folder with several files of images is refused; which of them is meant cannot be known.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.data_file import DataFile, class_numbers
from guard.errors import DataError

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IMAGES, LABELS = ("idx3", "idx4"), ("idx1", "idx2")  # parts of names


def idx_files(folder: Path) -> dict[str, Path]:
    """Return a folder's IDX files by their lower-case names without `.gz`; of two that differ in it the plain one."""
    files = (file for file in sorted(folder.iterdir(), reverse=True) if file.is_file() and file.name[:1] != ".")
    return {key(file): file for file in files if any(part in key(file) for part in (*IMAGES, *LABELS))}


def key(file: Path) -> str:
    return file.name.lower().removesuffix(".gz")


def labels_key(images: str) -> str:
    """Return the name of the labels that belong to images: `x-images-idx3-ubyte` gives `x-labels-idx1-ubyte`."""
    return images.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")


def read_idx_folder(folder: Path) -> DataFile:
    """Read the one pair of a folder. Raises DataError where it holds several, or halves of two."""
    files = idx_files(folder)
    images = sorted(name for name in files if any(part in name for part in IMAGES))
    if len(images) != 1:
        seen = ", ".join(files[name].name for name in images or sorted(files))
        wanted = "name one file as --data and, of training, another as --test" if images else "their images are missing"
        raise DataError(f"{folder} holds {len(images)} IDX files of images ({seen}); wanted one: {wanted}")
    other = sorted(set(files) - {images[0], labels_key(images[0])})
    if other and labels_key(images[0]) not in files:
        raise DataError(
            f"{folder} holds {files[images[0]].name} and {files[other[0]].name}, which do not belong together; "
            f"wanted {labels_key(images[0])}"
        )
    stray = f"left out: {', '.join(files[name].name for name in other)}, whose images are missing"
    return read_idx_pair(files[images[0]], notes=(stray,) if other else ())


def read_idx_pair(file: Path, *, notes: tuple[str, ...] = ()) -> DataFile:
    """Read images, and their labels where the file that has them lies beside. Raises DataError."""
    images, wanted = read_idx(file), labels_key(key(file))
    if images.ndim < 2:
        raise DataError(f"{file} holds {list(images.shape)} numbers, as labels are; wanted a file of images")
    beside = None if wanted == key(file) else idx_files(file.parent).get(wanted)
    labels = None if beside is None else class_numbers(read_idx(beside), str(beside))
    return DataFile(images, labels, str(file), notes=notes, labels_wanted=f"{wanted} beside it, or that with .gz,")


def read_idx(file: Path) -> NDArray[Any]:
    """Read an IDX array, gzipped or not. Raises DataError."""
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if file.suffix.lower() == ".gz" else raw
        zero, kind, axes = struct.unpack(">HBB", raw[:4])
        if zero != 0 or kind not in IDX_TYPES:
            raise DataError(f"{file} is no IDX file: it begins with {raw[:4].hex()}")
        shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
        array = np.frombuffer(raw, dtype=IDX_TYPES[kind], offset=4 + 4 * axes)
        return array.reshape(shape).astype(np.dtype(IDX_TYPES[kind]).newbyteorder("="))
    except (OSError, EOFError, struct.error, ValueError, zlib.error) as error:
        raise DataError(f"{file} cannot be read as IDX: {error}") from error
