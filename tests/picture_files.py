"""Picture files of every kind, written byte by byte where Pillow cannot write them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATION = 0x0112
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)  # [height, width, channel]
RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
RAMP_16 = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(values: NDArray[Any], colour_type: int, extra: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """A PNG of 8 or 16 bits a value: colour type 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha."""
    height, width = size or values.shape[:2]
    depth = 16 if values.dtype == np.uint16 else 8
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", head), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def save(file: Path, values: NDArray[Any], **settings: Any) -> Path:
    """Write values [height, width] or [height, width, channel] as Pillow does by the file's name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file, **settings)
    return file


def classes(root: Path, names: Sequence[str], size: tuple[int, int] = (6, 8)) -> Path:
    """A folder a class with one grey picture each, whose grey is the class's place among `names`."""
    for place, name in enumerate(names):
        save(root / name / "a.png", np.full(size, place, dtype=np.uint8))
    return root
