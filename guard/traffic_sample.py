"""The store of an unbiased sample of traffic: a directory with a manifest and shards of wire inputs.

    sample.json          format, the mark that it is unbiased, share, bundle, model and input
    shard-00000001.npz   images [item, ...] as on the wire; rejected [item]; p_values [item]; seconds [item] (Unix time)

Rule 1: what is drawn is decided before the verdict, by a random number and nothing else; rejected items are in it.
Rule 2: a shard is written whole or not at all, and never changed; shards are in the order of arrival.
Rule 3: beyond the bounds the oldest shards go: what is left is still unbiased, since age decides.

Without the mark a store is no ground for a calibration: a log of what was flagged, or of what passed, would move every
threshold to where the guard already was.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataError
from guard.fusion import Floats
from guard.manifest import InputSpec

FORMAT_VERSION = 1
MANIFEST = "sample.json"
SHARD = re.compile(r"shard-(\d{8})\.npz")
SHARD_BYTES = 4 << 20  # of images, after which a shard is written
UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class SampleSpec:
    """The contents of `sample.json`, field by field."""

    share: float  # of all items that is drawn
    bundle: str  # digest of the bundle whose verdicts are marked
    model: str
    datatype: str
    shape: tuple[int, ...]  # of one item on the wire
    unbiased: bool = True  # drawn before the verdict, rejected items included
    format: int = FORMAT_VERSION

    @staticmethod
    def of(spec: InputSpec, *, share: float, bundle: str, model: str) -> SampleSpec:
        """The manifest of a sample of inputs of this form."""
        return SampleSpec(share, bundle, model, spec.datatype, spec.wire_shape)


@dataclass(frozen=True, eq=False)
class SampledItems:
    """Sampled items in their order of arrival, and what became of them."""

    images: NDArray[Any]  # [item, ...] as on the wire
    rejected: NDArray[np.bool_]  # [item] whether the guard's verdict was REJECT
    p_values: Floats  # [item] at that time; NaN where it was not inspected
    seconds: Floats  # [item] Unix time of arrival


@dataclass(eq=False)
class SampleWriter:
    """A writer of one store, which draws, collects and writes; all its methods are called from one thread.

    Raises OSError from `add` and `flush` where the disk is full or gone: what was to be written is lost then, and the
    writer goes on.
    """

    folder: Path
    spec: SampleSpec
    generator: np.random.Generator
    max_bytes: int = 1 << 30
    max_age_s: float = float("inf")
    shard_bytes: int = SHARD_BYTES
    waiting: list[SampledItems] = field(default_factory=list)
    waiting_bytes: int = 0

    def __post_init__(self) -> None:
        """Make the folder with its manifest, readable by its owner alone. Raises DataError where another lies there."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self.folder / MANIFEST
        if file.exists():
            if (found := read_spec(self.folder)) != self.spec:
                raise DataError(f"{self.folder} holds another sample ({found}); name another folder")
        else:
            write_privately(file, json.dumps(asdict(self.spec), indent=2, sort_keys=True).encode() + b"\n")
        self.last = max((number for number, _ in shards_in(self.folder)), default=0)

    def draw(self, items: int) -> NDArray[np.bool_]:
        """Draw which of `items` are sampled; to be asked before their verdict is known."""
        drawn: NDArray[np.bool_] = self.generator.random(items) < self.spec.share
        return drawn

    def add(self, items: SampledItems) -> None:
        """Take drawn items; they are written when a shard is full. Raises OSError."""
        self.waiting.append(items)
        self.waiting_bytes += items.images.nbytes
        if self.waiting_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was taken as a shard, and remove what exceeds the bounds. Raises OSError."""
        parts, self.waiting, self.waiting_bytes = self.waiting, [], 0
        if sum(len(part.images) for part in parts) == 0:
            return
        names = ("images", "rejected", "p_values", "seconds")
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        self.last += 1
        file = self.folder / f"shard-{self.last:08}.npz"
        partial = file.with_suffix(".partial")
        try:
            with open(partial, "wb", opener=private) as stream:
                np.savez(stream, allow_pickle=False, **arrays)
            partial.replace(file)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        self.prune(float(arrays["seconds"].max()))

    def prune(self, now: float) -> None:
        """Remove the oldest shards beyond `max_bytes`, and those written more than `max_age_s` before `now`."""
        kept = shards_in(self.folder)
        sizes = {file: file.stat().st_size for _, file in kept}
        total = sum(sizes.values())
        for _, file in kept[:-1]:
            with np.load(file, allow_pickle=False) as shard:
                newest = float(shard["seconds"].max())
            if total <= self.max_bytes and newest >= now - self.max_age_s:
                break
            file.unlink()
            total -= sizes[file]


@dataclass(frozen=True)
class TrafficSample:
    """An opened store, which is unbiased by its own mark."""

    folder: Path
    spec: SampleSpec

    @staticmethod
    def open(folder: Path) -> TrafficSample:
        """Open a store. Raises DataError where it is none, has no mark, or is empty."""
        spec = read_spec(folder)
        if not spec.unbiased:
            raise DataError(
                f"{folder} is not marked as an unbiased sample of all traffic (drawn before the verdict, rejected "
                "items included); a calibration on anything else would not keep its promise"
            )
        if not shards_in(folder):
            raise DataError(f"{folder} has no shards; nothing was sampled yet")
        return TrafficSample(folder, spec)

    def check_input(self, spec: InputSpec) -> None:
        """Raise DataError where the sample's items are no inputs of a model with this specification."""
        found, wanted = (self.spec.datatype, self.spec.shape), (spec.datatype, spec.wire_shape)
        if found != wanted:
            raise DataError(
                f"{self.folder} holds items {list(found[1])} of {found[0]}; the bundle's model takes "
                f"{list(wanted[1])} of {wanted[0]}"
            )

    def shards(self) -> Iterator[SampledItems]:
        """Yield the shards in their order of arrival. Raises DataError for one that is damaged or foreign."""
        for _, file in shards_in(self.folder):
            try:
                with file.open("rb") as stream, np.load(stream, allow_pickle=False) as shard:
                    items = SampledItems(shard["images"], shard["rejected"], shard["p_values"], shard["seconds"])
            except UNREADABLE as error:
                raise DataError(f"{file} cannot be read: {error}") from error
            facts = (items.rejected, items.p_values, items.seconds)
            if items.images.shape[1:] != self.spec.shape or any(one.shape != items.images.shape[:1] for one in facts):
                raise DataError(f"{file} holds items of shape {list(items.images.shape[1:])}, or not one fact an item")
            yield items


def read_spec(folder: Path) -> SampleSpec:
    """Read the manifest of a store. Raises DataError."""
    file = folder / MANIFEST
    if not file.is_file():
        raise DataError(
            f"{folder} is no sample of traffic: it has no {MANIFEST}, which `guard serve` would have written"
        )
    try:
        raw: Mapping[str, Any] = json.loads(file.read_bytes())
        if raw["format"] != FORMAT_VERSION:
            raise DataError(f"{file} has format {raw['format']!r}; this version of the guard reads {FORMAT_VERSION}")
        marked = raw.get("unbiased") is True
        fields = (float(raw["share"]), str(raw["bundle"]), str(raw["model"]), str(raw["datatype"]))
        return SampleSpec(*fields, tuple(int(size) for size in raw["shape"]), marked)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__}: {error})") from error


def shards_in(folder: Path) -> list[tuple[int, Path]]:
    """The numbers and files of a store's shards, oldest first."""
    found = [(SHARD.fullmatch(file.name), file) for file in folder.iterdir()]
    return sorted((int(match[1]), file) for match, file in found if match)


def private(path: str, flags: int) -> int:
    """Open a file that its owner alone may read and write."""
    return os.open(path, flags, 0o600)


def write_privately(file: Path, content: bytes) -> None:
    """Write a file whole or not at all, for its owner alone. Raises OSError."""
    partial = file.with_suffix(".partial")
    with open(partial, "wb", opener=private) as stream:
        stream.write(content)
    partial.replace(file)
