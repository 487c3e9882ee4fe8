"""Unpacking of bodies by their Content-Encoding, bounded, and packing where a repair changes one.

Rule 1: a body is one whole stream of the coding that its header names: servers disagree on what else it may be (two
        streams in a row, deflate without zlib's header), and could read another tensor than the guard.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence

from guard.errors import MalformedRequest, TooLarge

WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


def coding_of(values: Sequence[str]) -> str | None:
    """The one coding that the Content-Encoding headers name; None where the body is plain. Raises MalformedRequest."""
    if not values or values == ["identity"]:
        return None
    named = ", ".join(values)
    if len(values) == 1 and values[0].lower() in WINDOWS:
        return values[0].lower()
    raise MalformedRequest(f"the body's Content-Encoding is {named[:40]!r}; send it plain, or as gzip or deflate")


def unpacked(body: bytes, coding: str | None, largest_bytes: int) -> bytes:
    """The plain body. Raises TooLarge, MalformedRequest."""
    if coding is None:
        return body
    stream = zlib.decompressobj(WINDOWS[coding])
    try:
        plain = stream.decompress(body, largest_bytes + 1)
    except zlib.error as error:
        raise MalformedRequest(f"the body is no {coding}, which its Content-Encoding names") from error
    if len(plain) > largest_bytes:
        raise TooLarge(f"the body unpacks to more than max_message_bytes = {largest_bytes}; send fewer items")
    if not stream.eof or stream.unused_data:
        raise MalformedRequest(f"the body is not one whole {coding} stream: it is cut, or something follows it")
    return plain


def packed(plain: bytes, coding: str | None) -> bytes:
    """The body in a coding, packed as fast as can be."""
    if coding is None:
        return plain
    return gzip.compress(plain, compresslevel=1, mtime=0) if coding == "gzip" else zlib.compress(plain, level=1)
