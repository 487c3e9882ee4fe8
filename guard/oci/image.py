"""The words of an OCI image: media types, descriptors, and the files of an image layout.

How it works. An image is a manifest that names a configuration and layers (tar files) by the SHA-256 of their bytes.
On disk it is a directory, the image layout; the manifest of its image is found through `index.json`:

    oci-layout                   {"imageLayoutVersion": "1.0.0"}
    index.json                   {"manifests": [{"digest": "sha256:ab…", "size": 912, "mediaType": …}]}
    blobs/sha256/ab…             the manifest: {"config": {…}, "layers": [{"digest": "sha256:cd…", …}]}
    blobs/sha256/cd…             a layer: models/manifest.json, models/interpret.onnx, …

Rule 1: a digest is believed to be one only if it is `sha256:` and 64 hexadecimal digits: it becomes a file's name.
Rule 2: no blob is used before its size and digest were found to be those of its descriptor.

Source: OCI image specification 1.1. We left out: other digests than SHA-256, layers packed with zstd, layers of other
hosts (`urls`) and artefacts that are no images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.errors import BundleError

FOLDER = "models"  # inside of the image, as KServe's modelcars have it
LAYOUT_FILE, INDEX_FILE, BLOBS = "oci-layout", "index.json", "blobs/sha256"
LAYOUT = {"imageLayoutVersion": "1.0.0"}
REFERENCE = "org.opencontainers.image.ref.name"  # the annotation with an image's tag in an index

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
# What others write, and is read: Docker's names for the same.
INDEX_TYPES = (INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = (MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")
PACKED_LAYERS = (LAYER_TYPE, "application/vnd.docker.image.rootfs.diff.tar.gzip")
PLAIN_LAYERS = ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar")

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MAX_DOCUMENT_BYTES = 4 * 2**20  # of a manifest, an index or a configuration, as registries bound them
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Descriptor:
    """A reference to a blob: its kind, the SHA-256 of its bytes, and their number."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: Mapping[str, str]

    @staticmethod
    def of(content: bytes, media_type: str, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Describe a blob by its content."""
        return Descriptor(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content), annotations or {})

    @staticmethod
    def read(raw: Any, where: str) -> Descriptor:
        """Read a descriptor of a document. Raises BundleError."""
        try:
            digest, size = str(raw["digest"]), raw["size"]
            found = Descriptor(str(raw["mediaType"]), digest, int(size), dict(raw.get("annotations") or {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"{where} holds no descriptor ({type(error).__name__}: {error}); it is no image"
            ) from error
        if not DIGEST.fullmatch(digest) or found.size_bytes < 0:
            raise BundleError(f"{where} names a blob {digest[:80]!r}; wanted sha256: and 64 hexadecimal digits")
        return found

    def to_json(self) -> dict[str, Any]:
        """The descriptor as documents hold it."""
        noted = {"annotations": dict(self.annotations)} if self.annotations else {}
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes, **noted}

    def file(self, layout: Path) -> Path:
        """The file of the blob in an image layout."""
        return layout / BLOBS / self.digest.removeprefix("sha256:")


def document(content: Mapping[str, Any]) -> bytes:
    """The bytes of a document, the same for the same content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def parsed(content: bytes, where: str) -> dict[str, Any]:
    """Parse a document. Raises BundleError."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} cannot be read ({error}); wanted a JSON document of an OCI image") from error
    if not isinstance(found, dict):
        raise BundleError(f"{where} is no object of JSON; wanted a document of an OCI image")
    return found


def verified_file(descriptor: Descriptor, layout: Path) -> Path:
    """The file of a blob whose size and digest were found to be the descriptor's. Raises BundleError."""
    file = descriptor.file(layout)
    if not file.is_file():
        raise BundleError(f"{file} is missing; the image is incomplete")
    if (size := file.stat().st_size) != descriptor.size_bytes:
        raise BundleError(f"{file} has {size} bytes, and {descriptor.size_bytes} were said; the image is damaged")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if f"sha256:{found}" != descriptor.digest:
        raise BundleError(f"{file} was altered: its SHA-256 is {found[:12]}…; the image is damaged")
    return file


def read_document(descriptor: Descriptor, layout: Path) -> dict[str, Any]:
    """Read a verified document of an image layout. Raises BundleError."""
    if descriptor.size_bytes > MAX_DOCUMENT_BYTES:
        raise BundleError(
            f"{descriptor.digest} is said to be a document of {descriptor.size_bytes} bytes; at most "
            f"{MAX_DOCUMENT_BYTES} are read"
        )
    file = verified_file(descriptor, layout)
    return parsed(file.read_bytes(), str(file))


def chosen(index: Mapping[str, Any], where: str) -> Descriptor:
    """Return the one image of an index; of several platforms the first, since a bundle is for all of them.

    Raises:
        BundleError: there is none, or there are several under different names.
    """
    manifests = index.get("manifests")
    found = [Descriptor.read(raw, where) for raw in (manifests if isinstance(manifests, list) else [])]
    images = [
        one
        for one in found
        if one.media_type in (*MANIFEST_TYPES, *INDEX_TYPES)
        and "vnd.docker.reference.type" not in one.annotations  # what builders attest of an image, beside it
    ]
    if not images:
        kinds = ", ".join(sorted({one.media_type for one in found})) or "nothing"
        raise BundleError(f"{where} names no image; it names {kinds}")
    names = {one.annotations.get(REFERENCE) for one in images}
    if len(names) > 1:
        listed = ", ".join(sorted(map(str, names)))
        raise BundleError(f"{where} holds {len(names)} images ({listed}); wanted a layout with one")
    return images[0]


def layers_of(manifest: Mapping[str, Any], where: str) -> Sequence[Descriptor]:
    """Return an image's layers from the lowest to the topmost. Raises BundleError where one cannot be read."""
    raw = manifest.get("layers")
    found = [Descriptor.read(one, where) for one in (raw if isinstance(raw, list) else [])]
    for one in found:
        if one.media_type not in (*PACKED_LAYERS, *PLAIN_LAYERS):
            raise BundleError(
                f"{where} has a layer of kind {one.media_type}; wanted tar, plain or with gzip: {PACKED_LAYERS[0]}"
            )
    if not found:
        raise BundleError(f"{where} has no layers; wanted an image that holds {FOLDER}/manifest.json")
    return found
