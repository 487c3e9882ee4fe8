"""Return to the system of the memory that large messages took, where the C library is glibc.

gRPC's core puts a message together from thousands of small pieces, on several threads. glibc gives each thread a heap
of its own and keeps what was freed in the middle of it: after three bodies of 120 MiB, one after the other, 284 MiB
were held where 102 are in use. With two heaps, and `malloc_trim` when a large message is gone, it is 102.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

M_ARENA_MAX = -8  # glibc's <malloc.h>
MAX_ARENAS = 2


def library() -> Any:
    """The C library, or None where it is not glibc."""
    with suppress(OSError, AttributeError):
        found = ctypes.CDLL(None)
        if hasattr(found, "mallopt") and hasattr(found, "malloc_trim"):
            return found
    return None


def few_heaps() -> None:
    """Limit this process to `MAX_ARENAS` heaps; to be called before it starts threads."""
    if (glibc := library()) is not None:
        glibc.mallopt(M_ARENA_MAX, MAX_ARENAS)


def give_back() -> None:
    """Hand free memory back to the system. Takes milliseconds, without the interpreter's lock."""
    if (glibc := library()) is not None:
        glibc.malloc_trim(0)
