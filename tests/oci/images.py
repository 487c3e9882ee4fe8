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
