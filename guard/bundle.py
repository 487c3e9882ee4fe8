"""A bundle: the directory that passes from offline to serving, and the only thing that does.

Rule 1: a bundle is written whole or not at all, and never changed.
Rule 2: what is not named in the manifest with its SHA-256 is not part of it; what is named and differs is an error.
        A signature of the whole may lie beside the manifest (`guard/signature.py`).
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from guard.calibration import Calibration
from guard.errors import BundleError
from guard.manifest import FORMAT_VERSION, Manifest, ProgramSpec, RepairSpec

READ_VERSIONS = (2, 3, 4, FORMAT_VERSION)  # 2 knows no features of tables, 3 and 4 no opinions of repairs and programs
MANIFEST, WEIGHTS, CALIBRATION = "manifest.json", "weights.bin", "calibration.npz"
SIGNATURE = "model.sig"  # beside the manifest, where the bundle was signed; see `guard/signature.py`
ANSWER_CALIBRATION = "answer.npz"  # of a closed model's answers, for a guard that forwards before its verdict

# What reading a damaged archive may raise; an unknown compression or a password is a RuntimeError.
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Samples:
    """A few inputs with the readings that this bundle must give for them."""

    images: NDArray[Any]  # [item, ...] wire values
    logits: NDArray[np.float32]  # [item, class]
    scores: NDArray[np.float64]  # [item, detector], every program run
    p_values: NDArray[np.float64]  # [item], as the cascade gives them


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its files verified against its manifest."""

    path: Path
    manifest: Manifest
    digest: str  # SHA-256 of manifest.json, hence of everything
    files: Mapping[str, str]  # the SHA-256 (hex) of each file beside the manifest, as it was verified

    @property
    def beside(self) -> tuple[str, ...]:
        """The names of what lies in the directory and is no part of the bundle: mounts and editors leave such."""
        known = {*self.files, MANIFEST, SIGNATURE}
        return tuple(sorted(entry.name for entry in self.path.iterdir() if entry.name not in known))

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """Open the bundle at `path` and verify every file.

        Raises:
            BundleError: `path` is no bundle or one of another format, or a file is missing, added or altered.
        """
        root = Path(path)
        file = root / MANIFEST
        if not root.is_dir():
            raise BundleError(f"{root} is not a bundle: no such directory; `guard train --out {root}` makes one")
        if not file.is_file():
            raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}")
        text = file.read_bytes()
        try:
            raw = json.loads(text)
            found = raw["format"]
            if found not in READ_VERSIONS:
                raise BundleError(
                    f"{root} has bundle format {found!r}; this version of the guard reads format "
                    f"{' and '.join(map(str, READ_VERSIONS))}; train the bundle again"
                )
            files = {str(name): str(digest) for name, digest in raw.pop("files").items()}
            manifest = Manifest.from_json(raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{file} cannot be read ({type(error).__name__}: {error}); the bundle is damaged or foreign"
            ) from error
        verify_files(root, files)
        named = [p.file for p in manifest.programs] + [r.file for r in manifest.repairs] + [CALIBRATION, "samples.npz"]
        if absent := [name for name in named if name not in files]:
            raise BundleError(f"{file} does not vouch for {', '.join(absent)}; the bundle is damaged or foreign")
        return Bundle(root, manifest, hashlib.sha256(text).hexdigest(), files)

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of what decides on inputs: programs, weights and calibration, not the report beside them."""
        files = self.path
        return identity(
            self.manifest.programs, lambda name: file_digest(files / name) if (files / name).is_file() else None
        )

    def content(self, name: str) -> bytes:
        """Read a file of the bundle, once more verified: what is used is what was opened.

        Raises:
            BundleError: it was changed since, by a writer who does not wait until the bundle is closed.
        """
        file = self.path / name
        try:
            content = file.read_bytes()
        except OSError as error:
            raise BundleError(f"{file} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != self.files[name]:
            raise BundleError(f"{file} was altered after the bundle was opened; put a new bundle in a new directory")
        return content

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Read the arrays of an .npz of the bundle. Raises BundleError."""
        return read_npz(self.path / name, io.BytesIO(self.content(name)))

    @cached_property
    def calibration(self) -> Calibration:
        return Calibration.from_arrays(self.arrays(CALIBRATION))

    @cached_property
    def samples(self) -> Samples:
        arrays = self.arrays("samples.npz")
        try:
            return Samples(arrays["images"], arrays["logits"], arrays["scores"], arrays["p_values"])
        except KeyError as error:
            raise BundleError(f"samples.npz of {self.path} lacks {error}; train the bundle again") from error

    def repair(self, name: str) -> RepairSpec:
        """Return the denoiser `name`.

        Raises:
            BundleError: it is unknown, and the message lists those that there are; or its graph does not tell whether
                a repaired answer is stable.
        """
        for spec in self.manifest.repairs:
            if spec.name == name:
                if not spec.opinions:
                    raise BundleError(
                        f"the bundle repairs by {name!r} without telling whether the repaired answer is stable; "
                        "train the bundle again"
                    )
                return spec
        have = ", ".join(spec.name for spec in self.manifest.repairs) or "none"
        raise BundleError(f"the bundle cannot repair by {name!r}; it has: {have}")


def verify_files(root: Path, files: Mapping[str, str]) -> None:
    """Raise BundleError for a missing, altered or added file; hidden files are ignored: some mounts leave theirs."""
    for file in sorted(root.iterdir()):
        if file.is_file() and file.name not in {*files, MANIFEST, SIGNATURE} and not file.name.startswith("."):
            raise BundleError(f"{file} is not named in the manifest; a bundle holds nothing else")
    for name, expected in files.items():
        file = root / plain_name(name)
        if not file.is_file():
            raise BundleError(f"{file} is missing; the bundle is incomplete")
        if (found := file_digest(file)) != expected:
            raise BundleError(f"{file} was altered: SHA-256 is {found[:12]}…, the manifest says {expected[:12]}…")


def plain_name(name: str) -> str:
    """Return `name`. Raises BundleError where it leads out of the bundle, to its manifest or to its signature."""
    if Path(name).name != name or name in (".", "..", MANIFEST, SIGNATURE):
        raise BundleError(f"{name!r} is no name of a file in a bundle: it lies elsewhere, or is taken")
    return name


def identity(programs: Sequence[ProgramSpec], digest: Callable[[str], str | None]) -> str:
    """SHA-256 (hex) that tells one guard from another, whether it is in a bundle already or not.

    `digest` returns the digest of a file's content by the file's name; None where there is no such file.
    """
    files = sorted({*(program.file for program in programs), WEIGHTS, CALIBRATION, ANSWER_CALIBRATION})
    found = [(name, known) for name in files if (known := digest(name)) is not None]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_npz(path: Path, content: BinaryIO | None = None) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz, never unpickled, or of its content. Raises BundleError."""
    try:
        with content or path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise BundleError(f"{path} cannot be read: {error}") from error


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write `files` and their manifest beside `path`, then move the whole into place.

    Raises:
        BundleError: `path` exists; a bundle is immutable.
    """
    if path.exists():
        raise BundleError(f"{path} exists, and a bundle is never changed; name another --out or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, content in files.items():
            (partial / plain_name(name)).write_bytes(content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        (partial / MANIFEST).write_text(manifest.to_json(digests), encoding="utf-8")
        partial.chmod(0o755)
        Bundle.open(partial)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Bundle.open(path)
