"""A bundle packed as an OCI image: one layer with its files in `models/`, as an image layout on disk.

Rule 1: the same bundle gives the same bytes: files in the order of their names, no times, no owner, one packing.
Rule 2: what is packed is what the bundle vouches for, and its signature; each file is held against its digest once
        more while it is packed.
Rule 3: a layout is written whole or not at all.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from guard.bundle import MANIFEST, SIGNATURE, Bundle
from guard.errors import BundleError
from guard.oci.image import (
    BLOBS,
    CONFIG_TYPE,
    FOLDER,
    INDEX_FILE,
    INDEX_TYPE,
    LAYER_TYPE,
    LAYOUT,
    LAYOUT_FILE,
    MANIFEST_TYPE,
    REFERENCE,
    Descriptor,
    document,
)
from guard.oci.provenance import EPOCH_VARIABLE, created_text, image_annotations

PLATFORM = {"architecture": "amd64", "os": "linux"}  # which an image has to name; a bundle runs on all
GZIP_LEVEL_CODE = 6
FILE_MODE_CODE, FOLDER_MODE_CODE = 0o644, 0o755


@dataclass(frozen=True)
class Packed:
    """A bundle as an image: the digest by which registries know it, and what it takes."""

    digest: str  # of the image's manifest
    layer: Descriptor
    plain_digest: str  # of the layer before it was packed with gzip


class Hashed:
    """A stream to write to that hashes what passes, on its way to another one."""

    def __init__(self, target: BinaryIO) -> None:
        self.target = target
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        self.size_bytes += len(content)
        return self.target.write(content)

    def flush(self) -> None:
        self.target.flush()

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256.hexdigest()}"


def pack(bundle: Bundle, out: Path, *, tag: str = "latest") -> Packed:
    """Write a bundle as an image layout: into the directory `out`, or as an archive where that is called FILE.tar.

    Raises:
        BundleError: `out` exists, or the bundle was changed after it was opened.
        ConfigError: SOURCE_DATE_EPOCH is no time.
    """
    with written_whole(out, archive) if out.suffix == ".tar" else written_whole(out) as partial:
        return write_layout(bundle, partial, tag)


def write_layout(bundle: Bundle, layout: Path, tag: str) -> Packed:
    """Write the image layout of a bundle into an empty directory."""
    blobs = layout / BLOBS
    blobs.mkdir(parents=True)

    def put(content: bytes, media_type: str) -> Descriptor:
        descriptor = Descriptor.of(content, media_type)
        descriptor.file(layout).write_bytes(content)
        return descriptor

    layer, plain = write_layer(bundle, blobs)
    created = created_text(os.environ.get(EPOCH_VARIABLE))
    said = image_annotations(bundle, created)
    rootfs = {"type": "layers", "diff_ids": [plain]}
    dated = {"created": created} if created else {}
    config = put(document({**PLATFORM, **dated, "config": {"Labels": said}, "rootfs": rootfs}), CONFIG_TYPE)
    content = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config.to_json(),
        "layers": [layer.to_json()],
        "annotations": said,
    }
    manifest = put(document(content), MANIFEST_TYPE)
    named = Descriptor(MANIFEST_TYPE, manifest.digest, manifest.size_bytes, {REFERENCE: tag})
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [named.to_json()]}
    (layout / INDEX_FILE).write_bytes(document(index))
    (layout / LAYOUT_FILE).write_bytes(document(LAYOUT))
    return Packed(manifest.digest, layer, plain)


def write_layer(bundle: Bundle, blobs: Path) -> tuple[Descriptor, str]:
    """Write the layer with a bundle's files among the blobs; return its descriptor, and its digest unpacked."""
    partial = blobs / "layer"
    with partial.open("wb") as stream:
        packed = Hashed(stream)
        with gzip.GzipFile("", "wb", GZIP_LEVEL_CODE, packed, mtime=0) as squeezed:
            plain = Hashed(squeezed)  # type: ignore[arg-type]
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
                tar.addfile(entry(FOLDER, tarfile.DIRTYPE))
                for name, digest in vouched(bundle):
                    add(tar, bundle.path / name, digest)
    layer = Descriptor(LAYER_TYPE, packed.digest, packed.size_bytes, {})
    partial.rename(blobs / layer.digest.removeprefix("sha256:"))
    return layer, plain.digest


def vouched(bundle: Bundle) -> Iterator[tuple[str, str | None]]:
    """The names of a bundle's files in order, each with its digest; the signature has none, since it is not vouched."""
    digests: dict[str, str | None] = {**bundle.files, MANIFEST: bundle.digest}
    if (bundle.path / SIGNATURE).is_file():
        digests[SIGNATURE] = None
    yield from sorted(digests.items())


def entry(name: str, kind: bytes, size_bytes: int = 0) -> tarfile.TarInfo:
    """The header of a file in the layer: without owner and time, readable by all."""
    found = tarfile.TarInfo(name)
    found.type, found.size = kind, size_bytes
    found.mode = FOLDER_MODE_CODE if kind == tarfile.DIRTYPE else FILE_MODE_CODE
    return found


def add(tar: tarfile.TarFile, file: Path, digest: str | None) -> None:
    """Add a file of the bundle. Raises BundleError where it is no longer what the bundle vouches for."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            read = HashedReader(stream)
            tar.addfile(entry(f"{FOLDER}/{file.name}", tarfile.REGTYPE, size), read)
    except OSError as error:
        raise BundleError(f"{file} cannot be packed: {error.strerror or error}") from error
    if digest is not None and read.sha256.hexdigest() != digest:
        raise BundleError(f"{file} was altered after the bundle was opened; nothing was written")


class HashedReader:
    """A stream to read from that hashes what is read."""

    def __init__(self, source: BinaryIO) -> None:
        self.source = source
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self.source.read(size)
        self.sha256.update(content)
        return content


@contextmanager
def written_whole(out: Path, finish: Callable[[Path], Path] = lambda partial: partial) -> Iterator[Path]:
    """A directory to write to beside `out`, whose content becomes `out` when the block ends well.

    Raises:
        BundleError: `out` exists, or cannot be written.
    """
    if out.exists():
        raise BundleError(f"{out} exists, and is not written over; name another --out or remove it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror}; name a place that can be") from error
    try:
        partial = temporary / "partial"
        partial.mkdir()
        yield partial
        finish(partial).replace(out)
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def archive(layout: Path) -> Path:
    """Write an image layout as one tar file beside it, the same bytes for the same layout."""
    file = layout.with_name("archive.tar")
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for one in sorted(layout.rglob("*")):
            name = one.relative_to(layout).as_posix()
            if one.is_dir():
                tar.addfile(entry(name, tarfile.DIRTYPE))
            else:
                with one.open("rb") as stream:
                    tar.addfile(entry(name, tarfile.REGTYPE, one.stat().st_size), stream)
    return file
