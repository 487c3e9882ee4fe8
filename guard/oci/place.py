"""The places that an image of a bundle can be at: a directory, an archive or a registry; and what is said of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from guard.bundle import Bundle
from guard.oci.pack import Packed, pack
from guard.oci.registry import SCHEME, Reference, pull, push
from guard.oci.unpack import beside, unpack, unpack_layout
from guard.signing import Trust, short


def pack_to(bundle: Bundle, place: str, *, plain_http: bool = False) -> Iterator[str]:
    """Pack a bundle to a place, and yield lines on what is there.

    Raises what `pack` and `push` do.
    """
    if not place.startswith(SCHEME):
        packed = pack(bundle, Path(place))
        yield f"image     {place}"
        yield from packed_lines(packed)
        return
    reference = Reference.read(place)
    with tempfile.TemporaryDirectory() as folder:
        layout = Path(folder) / "layout"
        packed = pack(bundle, layout, tag=reference.tag)
        digest = push(layout, reference, plain_http=plain_http)
    yield f"image     {reference.pinned(digest)}"
    yield from packed_lines(packed)


def packed_lines(packed: Packed) -> Iterator[str]:
    """Lines on an image: its digest, and what it takes."""
    yield f"digest    {packed.digest}"
    yield f"layer     {packed.layer.size_bytes:,} bytes"


def unpack_from(place: str, out: Path, trust: Trust, *, plain_http: bool = False) -> Iterator[str]:
    """Write the bundle of an image at `out`, and yield lines on it.

    Raises what `unpack` and `pull` do.
    """
    if place.startswith(SCHEME):
        reference = Reference.read(place)
        with beside(out) as folder:
            layout = folder / "layout"
            digest = pull(reference, layout, plain_http=plain_http)
            bundle, signer = unpack_layout(layout, out, trust)
        yield f"image     {reference.pinned(digest)}"
    else:
        bundle, signer = unpack(Path(place), out, trust)
    yield f"bundle    {bundle.path}, digest {bundle.digest[:16]}"
    if signer is not None:
        yield f"signed    by the key {short(signer.id)} ({signer.file}), verified"
