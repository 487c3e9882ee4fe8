"""Arrays that stay in the `.npy` or `.npz` file that holds them, where they do not fit into memory.

How it works: a `.npy` file is a head and then the values of one item behind those of the other, and an `.npz` that
`np.savez` wrote holds such files as they are. So an item's bytes lie at a known place, and are read from there. What
`np.savez_compressed` wrote has no such places: it is unpacked once, into an unnamed file.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from guard.array_room import fits_memory, new_array, parts
from guard.items_on_disk import Items, ItemsOnDisk, Places

LOCAL_HEAD = struct.Struct("<26xHH")  # of a member of a zip archive: lengths of its name and of an extra field
NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK\x03\x04"


@dataclass(frozen=True)
class ArrayHead:
    """The head of a stored array: shape, type, and the bytes that it takes itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size_bytes: int
    is_streamed: bool  # items lie behind each other, and all do not fit into memory


def open_large_array(file: Path, name: str) -> Items | None:
    """Open an array [item, ...] of an .npz by its name, or that of an .npy; None where it fits into memory.

    Raises what numpy and zipfile raise for damage.
    """
    with file.open("rb") as stream:
        start = stream.read(len(NPY_MAGIC))
        stream.seek(0)
        if start == NPY_MAGIC:
            head = head_of(stream)
            return on_disk(file, head, head.size_bytes) if head.is_streamed else None
        if not start.startswith(ZIP_MAGIC):
            return None
        with zipfile.ZipFile(stream) as archive:
            if f"{name}.npy" not in archive.namelist():
                return None
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as packed:
                head = head_of(packed)
                if not head.is_streamed:
                    return None
                if member.compress_type != zipfile.ZIP_STORED:
                    return unpacked(packed, head, str(file))
        stream.seek(member.header_offset)
        lengths = LOCAL_HEAD.unpack(stream.read(LOCAL_HEAD.size))
        return on_disk(file, head, member.header_offset + LOCAL_HEAD.size + sum(lengths) + head.size_bytes)


def head_of(stream: IO[bytes]) -> ArrayHead:
    """Read the head of a stored array, behind which the stream then stands. Raises ValueError where it is damaged."""
    counted = CountedStream(stream)
    version = npy.read_magic(counted)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(counted)
    streamed = not is_fortran and not dtype.hasobject and len(shape) > 1 and not fits_memory(shape)
    return ArrayHead(shape, dtype, counted.taken, streamed)


class CountedStream(io.RawIOBase):
    """A stream that counts the bytes read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self.stream, self.taken = stream, 0

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(size)
        self.taken += len(content)
        return content


def on_disk(file: Path, head: ArrayHead, start: int) -> ItemsOnDisk:
    """Return the items whose values begin at a byte of a file. Raises ValueError where the file is too short."""
    item_bytes = math.prod(head.shape[1:]) * head.dtype.itemsize
    if file.stat().st_size < start + head.shape[0] * item_bytes:
        raise ValueError(f"it ends before the {head.shape[0]} items that it announces")

    def read(places: Places) -> NDArray[Any]:
        values = np.empty((len(places), *head.shape[1:]), head.dtype)
        with file.open("rb") as stream:
            for row, place in enumerate(places.tolist()):
                content = os.pread(stream.fileno(), item_bytes, start + place * item_bytes)
                values[row] = np.frombuffer(content, head.dtype).reshape(head.shape[1:])
        return values

    return ItemsOnDisk(head.shape, head.dtype, read, str(file), (file,))


def unpacked(packed: IO[bytes], head: ArrayHead, source: str) -> NDArray[Any]:
    """Unpack the values behind a head, part by part, into an array that lies on disk."""
    values = new_array(head.shape, head.dtype, source)
    for part in parts(len(values), values[:1].nbytes):
        values[part] = np.frombuffer(exactly(packed, values[part].nbytes), head.dtype).reshape(values[part].shape)
    return values


def exactly(stream: IO[bytes], size_bytes: int) -> bytes:
    """Read so many bytes. Raises ValueError where the stream ends before."""
    content = b"".join(blocks(stream, size_bytes))
    if len(content) < size_bytes:
        raise ValueError("it ends before the items that it announces")
    return content


def blocks(stream: IO[bytes], size_bytes: int) -> Iterator[bytes]:
    while size_bytes > 0 and (block := stream.read(size_bytes)):
        size_bytes -= len(block)
        yield block
