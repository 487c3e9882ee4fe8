"""Images made by hand, as other tools and hostile registries would make them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guard.oci.image import CONFIG_TYPE, INDEX_TYPE, LAYER_TYPE, LAYOUT, MANIFEST_TYPE, document

Members = Sequence[tuple[tarfile.TarInfo, bytes]]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> Any:
    """A member of a layer: its header and its content."""
    found = tarfile.TarInfo(name)
    found.type, found.size, found.linkname = kind, len(content), target
    return found, content


class OldSparse(tarfile.TarInfo):
    """The header of a sparse member as GNU tar wrote it first: 512 bytes stored, and a size of its own."""

    real_bytes = 0

    def tobuf(self, *more: Any, **named: Any) -> bytes:
        self.type = tarfile.GNUTYPE_SPARSE
        header = bytearray(super().tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"%011o\0%011o\0" % (0, self.size)
        header[483:495] = b"%011o\0" % self.real_bytes
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header)


def sparse_member(name: str, form: str, real_bytes: int) -> Any:
    """A member with 512 bytes in its archive that unpacks to as many as it says, in one of the four forms."""
    content = b"x" * 512
    if form == "old GNU":
        old = OldSparse(name)
        old.size, old.real_bytes = len(content), real_bytes
        return old, content
    size = str(real_bytes)
    records = {
        "PAX 0.0": {"numblocks": "1", "offset": "0", "numbytes": "512", "size": size},
        "PAX 0.1": {"numblocks": "1", "map": "0,512", "size": size, "name": name},
        "PAX 1.0": {"major": "1", "minor": "0", "realsize": size, "name": name},
    }[form]
    found, content = member(name, b"1\n0\n512\n".ljust(512, b"\0") + content if form == "PAX 1.0" else content)
    found.pax_headers = {f"GNU.sparse.{key}": value for key, value in records.items()}
    return found, content


def files_of(bundle: Path, folder: str = "models/") -> list[Any]:
    """The files of a bundle as members."""
    return [member(f"{folder}{file.name}", file.read_bytes()) for file in sorted(bundle.iterdir())]


def tar_of(members: Members) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for header, content in members:
            tar.addfile(header, io.BytesIO(content))
    return stream.getvalue()


class Image:
    """An image layout that is written blob by blob."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_bytes(document(LAYOUT))

    def put(self, content: bytes, kind: str, **more: Any) -> dict[str, Any]:
        """Write a blob and return its descriptor."""
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content), **more}

    def manifest(
        self, layers: Sequence[Members], *, layer_type: str = LAYER_TYPE, diff_ids: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Write an image of these layers and return the descriptor of its manifest."""
        plain = [tar_of(one) for one in layers]
        packed = [gzip.compress(one, mtime=0) if "gzip" in layer_type else one for one in plain]
        found = [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in plain]
        config = {"rootfs": {"type": "layers", "diff_ids": found if diff_ids is None else diff_ids}}
        content = {
            "schemaVersion": 2,
            "config": self.put(document(config), CONFIG_TYPE),
            "layers": [self.put(one, layer_type) for one in packed],
        }
        return self.put(document(content), MANIFEST_TYPE)

    def index(self, *manifests: dict[str, Any]) -> Path:
        """Write the index, and return the layout."""
        content = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": list(manifests)}
        (self.folder / "index.json").write_bytes(document(content))
        return self.folder


def manifest_in(layout: Path) -> tuple[dict[str, Any], Path]:
    """The manifest of a layout's only image, and its file."""
    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    file = layout / "blobs/sha256" / entry["digest"].removeprefix("sha256:")
    return json.loads(file.read_bytes()), file
