"""Room for large arrays: memory where they are small beside what there is, an unlinked temporary file where not.

Rule 1: a file's bytes are reserved before they are mapped: a full disk is an error here, and no crash at a later write.
Rule 2: nothing is left behind: a temporary file has no name, and is gone with the last array that looks into it.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from guard.container import memory_bytes
from guard.errors import DataError

MAX_MEMORY_SHARE = 0.2  # of the memory that this process may use, for one array
PART_BYTES = 2**25  # converted at a time
GIB_BYTES = 2**30
FLOAT32_BYTES = 4


def new_array(shape: tuple[int, ...], dtype: DTypeLike, source: str) -> NDArray[Any]:
    """Return an array of zeros, in memory or in a temporary file. Raises DataError where neither has room for it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= max_array_bytes():
        return np.zeros(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype).reshape(shape)
    except OSError as error:
        raise DataError(
            f"{source}: its values take {size / GIB_BYTES:.1f} GiB, too much for memory, and {tempfile.gettempdir()} "
            f"has no room for them ({error.strerror}); wanted a folder with that much room: set TMPDIR"
        ) from error


def max_array_bytes() -> int:
    """Return how large an array in memory may be, by the control group's limit and the machine's memory."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(MAX_MEMORY_SHARE * min(there, memory_bytes() or there))


def fits_memory(shape: tuple[int, ...]) -> bool:
    """Tell whether items of a shape [item, ...] are few enough to be held in memory, as float32."""
    return math.prod(shape) * FLOAT32_BYTES <= max_array_bytes()


def parts(items: int, item_bytes: int) -> Iterator[slice]:
    """Cut items into parts of about `PART_BYTES`: 10 items of half of it are 5 slices of two."""
    step = max(1, PART_BYTES // max(1, item_bytes))
    for start in range(0, items, step):
        yield slice(start, min(items, start + step))


def taken(array: NDArray[Any], index: NDArray[Any] | slice, source: str) -> NDArray[Any]:
    """Return some items of an array, as `array[index]` does; a copy that is large lies on disk."""
    if isinstance(index, slice):
        return array[index]
    places = np.flatnonzero(index) if index.dtype == np.bool_ else index
    chosen = new_array((len(places), *array.shape[1:]), array.dtype, source)
    for part in parts(len(places), array[:1].nbytes):
        chosen[part] = array[places[part]]
    return chosen


def float_parts(images: NDArray[Any]) -> Iterator[slice]:
    """Cut inputs into parts by the memory that an item takes as float32."""
    return parts(len(images), FLOAT32_BYTES * math.prod(images.shape[1:]))
