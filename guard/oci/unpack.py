"""A bundle taken out of an OCI image: every digest verified, nothing but plain files, and the bundle opened last.

Rule 1: an image comes from outside: it says what is written, and never where. Only plain files directly in `models/`
        are taken, by their last name.
Rule 2: what is written is no longer than what was read. A sparse member, whose few bytes stand for as many as it says,
        is refused in layers and archives.
Rule 3: nothing is at `out` until the bundle in it was opened, and its signature verified where keys are trusted.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from guard.bundle import Bundle
from guard.errors import BundleError
from guard.oci.image import (
    BLOBS,
    CHUNK_BYTES,
    FOLDER,
    INDEX_FILE,
    INDEX_TYPES,
    LAYOUT_FILE,
    MAX_DOCUMENT_BYTES,
    PACKED_LAYERS,
    Descriptor,
    chosen,
    layers_of,
    parsed,
    read_document,
    verified_file,
)
from guard.oci.pack import written_whole
from guard.signing import Trust, TrustedKey, open_trusted

MAX_UNPACKED_BYTES = 32 * 2**30  # of one layer; what is larger is taken for an attempt to fill the disk
MAX_HEADER_BYTES = 2**20  # of a member's long name or PAX records, which are read into memory
HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
REMOVED, EMPTIED = ".wh.", ".wh..wh..opq"  # names by which a layer takes away what lower ones have
BLOB_NAME = re.compile(rf"{BLOBS}/[0-9a-f]{{64}}")


def unpack(source: Path, out: Path, trust: Trust) -> tuple[Bundle, TrustedKey | None]:
    """Take the bundle out of an image layout, a directory or an archive of one, and write it at `out`.

    Returns:
        The bundle, and the key that it was verified by; None where no key is trusted.

    Raises:
        BundleError: `source` is no image of a bundle, is damaged or not signed as it must be, or `out` exists.
    """
    with layout_of(source, out) as layout:
        return unpack_layout(layout, out, trust)


@contextmanager
def layout_of(source: Path, out: Path) -> Iterator[Path]:
    """The directory of an image layout; an archive is laid out beside `out` for as long as the block lasts."""
    if source.is_dir():
        yield source
    elif source.is_file():
        with beside(out) as folder:
            lay_out(source, folder)
            yield folder
    else:
        raise BundleError(f"{source} is not there; wanted an image layout: a directory or archive of guard pack")


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A directory beside `out`, hence on its disk, that is removed after the block. Raises BundleError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror or error}; name a place that can be") from error


def unpack_layout(layout: Path, out: Path, trust: Trust) -> tuple[Bundle, TrustedKey | None]:
    """Take the bundle out of the directory of an image layout; see `unpack`."""
    for name in (LAYOUT_FILE, INDEX_FILE):
        if not (layout / name).is_file():
            raise BundleError(
                f"{layout} is no image layout: it has no {name}; guard pack BUNDLE --out {layout} makes one"
            )
    if (layout / INDEX_FILE).stat().st_size > MAX_DOCUMENT_BYTES:
        raise BundleError(f"{layout / INDEX_FILE} is larger than {MAX_DOCUMENT_BYTES} bytes; the image is damaged")
    manifest, where = manifest_of(layout)
    layers = layers_of(manifest, where)
    config = read_document(Descriptor.read(manifest.get("config"), where), layout)
    rootfs = config.get("rootfs")
    plain = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(plain, list) or len(plain) != len(layers):
        raise BundleError(f"{where}: its configuration does not name the digest of each layer; the image is damaged")
    with written_whole(out) as folder:
        for layer, digest in zip(layers, plain, strict=True):
            take_layer(verified_file(layer, layout), folder, packed=layer.media_type in PACKED_LAYERS, digest=digest)
        if not any(folder.iterdir()):
            raise BundleError(
                f"{where} has no file in /{FOLDER}; wanted an image of guard pack, or COPY BUNDLE /{FOLDER}"
            )
        folder.chmod(0o755)
        _, signer = open_trusted(folder, trust)
    return Bundle.open(out), signer


def manifest_of(layout: Path) -> tuple[Mapping[str, Any], str]:
    """Return the manifest of a layout's one image, through indexes of indexes, and the place it stands at."""
    descriptor = chosen(parsed((layout / INDEX_FILE).read_bytes(), str(layout / INDEX_FILE)), str(layout / INDEX_FILE))
    for _ in range(3):  # an index of images for platforms lies in the layout's own, and no deeper
        found, where = read_document(descriptor, layout), str(descriptor.file(layout))
        if descriptor.media_type not in INDEX_TYPES:
            return found, where
        descriptor = chosen(found, where)
    raise BundleError(f"{layout} has indexes within indexes; wanted an image")


def lay_out(file: Path, folder: Path) -> None:
    """Write the parts of an image layout that an archive holds. Raises BundleError where it is no archive."""
    try:
        with tarfile.open(file, "r:", tarinfo=BoundedMember) as tar:
            for member in members_of(tar):
                name = member.name.removeprefix("./")
                if member.isfile() and (name in (LAYOUT_FILE, INDEX_FILE) or BLOB_NAME.fullmatch(name)):
                    write(content_of(tar, member), folder / name)
    except (tarfile.TarError, EOFError) as error:
        raise BundleError(
            f"{file} is no archive of an image ({error}); guard pack BUNDLE --out FILE.tar makes one"
        ) from error


class BoundedMember(tarfile.TarInfo):
    """A member of an archive whose headers take no more memory than they may."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> BoundedMember:
        found = super().frombuf(buf, encoding, errors)
        if found.type in HEADERS and found.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {found.size} bytes, at most {MAX_HEADER_BYTES} are read")
        if found.type == tarfile.GNUTYPE_SPARSE:  # whose map is as long as it says
            raise tarfile.ReadError(f"{found.name} is sparse; a bundle's files are written out")
        return found


def members_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, of which none is kept: a layer may have millions of empty ones."""
    while (member := tar.next()) is not None:
        yield member
        tar.members.clear()  # type: ignore[attr-defined]  # which typeshed leaves out


def content_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """The content of an archive's plain file. Raises BundleError, also where it is sparse."""
    if member.issparse():
        raise BundleError(f"{member.name} is sparse in its archive; a bundle's files are written out")
    content = tar.extractfile(member)
    if content is None:
        raise BundleError(f"{member.name} has no content in its archive; it is damaged")
    return content


def write(content: IO[bytes], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        shutil.copyfileobj(content, stream, CHUNK_BYTES)


class Drained:
    """A stream that hashes what is read of it, and reads no more than a layer may hold."""

    def __init__(self, source: BinaryIO, where: Path) -> None:
        self.source, self.where = source, where
        self.sha256 = hashlib.sha256()
        self.left_bytes = MAX_UNPACKED_BYTES

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        content = self.source.read(size)
        self.left_bytes -= len(content)
        if self.left_bytes < 0:
            raise BundleError(
                f"{self.where} unpacks to more than {MAX_UNPACKED_BYTES} bytes; it is no layer of a bundle"
            )
        self.sha256.update(content)
        return content


def take_layer(file: Path, folder: Path, *, packed: bool, digest: object) -> None:
    """Write the files that a layer has in `models/` into a folder, and take away what it says is removed.

    Raises:
        BundleError: it is damaged, or has something else than plain files there.
    """
    try:
        with file.open("rb") as raw:
            stream = Drained(gzip.GzipFile(fileobj=raw) if packed else raw, file)  # type: ignore[arg-type]
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=BoundedMember) as tar:  # type: ignore[call-overload]
                for member in members_of(tar):
                    take(tar, member, folder)
            while stream.read():  # what follows the end of the archive counts for its digest
                pass
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise BundleError(
            f"{file} is no layer that can be read ({type(error).__name__}: {error}); it is damaged"
        ) from error
    if (found := f"sha256:{stream.sha256.hexdigest()}") != digest:
        raise BundleError(f"{file} unpacks to {found[:19]}…, its configuration says {str(digest)[:19]}…; it is damaged")


def take(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Take one member of a layer where it lies in `models/`. Raises BundleError for what is no plain file there."""
    parts = PurePosixPath("/", member.name).parts[1:]
    if parts == (REMOVED + FOLDER,):
        clear(folder)
        return
    if not parts or parts[0] != FOLDER or (len(parts) == 1 and member.isdir()):
        return
    name = "/".join(parts[1:])
    if name == EMPTIED:
        clear(folder)
    elif name.startswith(REMOVED):
        (folder / plain(name.removeprefix(REMOVED), member)).unlink(missing_ok=True)
    elif member.isfile():
        write(content_of(tar, member), folder / plain(name, member))
    else:
        raise BundleError(f"/{member.name} of the image is no plain file; a bundle holds nothing else")


def plain(name: str, member: tarfile.TarInfo) -> str:
    """Return a file's name. Raises BundleError where it leads elsewhere."""
    if not name or "/" in name or name in (".", "..") or "\0" in name:
        raise BundleError(f"/{member.name} of the image lies in a folder of its own; a bundle's files lie in /{FOLDER}")
    return name


def clear(folder: Path) -> None:
    """Remove what lower layers have put there."""
    for file in folder.iterdir():
        file.unlink()
