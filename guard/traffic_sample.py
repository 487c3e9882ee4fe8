"""The store of an unbiased sample of traffic: a directory with a manifest and shards of wire inputs.

    sample.json          format, the mark that it is unbiased, share, bundle, model and input
    shard-00000001.npz   images [item, ...] as on the wire; rejected [item]; p_values [item]; seconds [item] (Unix time)

Rule 1: what is drawn is decided before the verdict, by a random number and nothing else; rejected items are in it.
Rule 2: a shard is written whole or not at all, and never changed; shards are in the order of arrival. Several writers
        may share a store: each takes the next free number.
Rule 3: beyond the bounds the oldest shards go: what is left is still unbiased, since age decides. A file's time is
        that of its newest item, so that one that cannot be read any more is as old as it is.

Without the mark a store is no ground for a calibration: a log of what was flagged, or of what passed, would move every
threshold to where the guard already was.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataError
from guard.fusion import Floats
from guard.manifest import InputSpec

FORMAT_VERSION = 1
MANIFEST = "sample.json"
SHARD = re.compile(r"shard-(\d{8})\.npz")
PARTIAL = re.compile(r".*\.partial")
MAX_PARTIAL_AGE_S = 3600.0  # after which what a crash left half-written goes
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

    def part(self, chosen: slice) -> SampledItems:
        """The items of a slice, with what became of them."""
        return SampledItems(self.images[chosen], self.rejected[chosen], self.p_values[chosen], self.seconds[chosen])


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
        if is_json(file):
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
        newest = float(arrays["seconds"].max())
        partial = self.folder / f"shard-{secrets.token_hex(8)}.partial"
        try:
            with open(partial, "wb", opener=private) as stream:
                np.savez(stream, allow_pickle=False, **arrays)
                on_disk(stream)
            os.utime(partial, (newest, newest))
            self.publish(partial)
        finally:
            partial.unlink(missing_ok=True)
        prune(self.folder, newest, max_bytes=self.max_bytes, max_age_s=self.max_age_s)

    def publish(self, partial: Path) -> None:
        """Give a shard that is written the next free number. Raises OSError."""
        while True:
            self.last += 1
            file = self.folder / f"shard-{self.last:08}.npz"
            try:
                put_in_place(partial, file)
            except FileExistsError:  # another writer's
                self.last = max(self.last, *(number for number, _ in shards_in(self.folder)))
                continue
            return


def put_in_place(partial: Path, file: Path) -> None:
    """Give a written file its name. Raises FileExistsError where there is such a file already, and OSError."""
    try:
        os.link(partial, file)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        partial.replace(file)


def prune(folder: Path, now: float, *, max_bytes: int, max_age_s: float) -> None:
    """Remove a store's oldest shards beyond `max_bytes`, but for the last one, and all older than `max_age_s`.

    What was left half-written goes, too. Raises OSError.
    """
    for file in folder.iterdir():
        if PARTIAL.fullmatch(file.name) and (fact := stat_of(file)) and fact.st_mtime < now - MAX_PARTIAL_AGE_S:
            file.unlink(missing_ok=True)
    kept = [(file, fact) for _, file in shards_in(folder) if (fact := stat_of(file))]
    total = sum(fact.st_size for _, fact in kept)
    for place, (file, fact) in enumerate(kept):
        too_many = total > max_bytes and place < len(kept) - 1
        if not too_many and fact.st_mtime >= now - max_age_s:
            break
        file.unlink(missing_ok=True)
        total -= fact.st_size


def stat_of(file: Path) -> os.stat_result | None:
    """The facts of a file; None where it is gone, as another guard may have removed it."""
    try:
        return file.stat()
    except FileNotFoundError:
        return None


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

    def check_model(self, name: str) -> None:
        """Raise DataError where the sample is one of another model's traffic."""
        if self.spec.model != name:
            raise DataError(
                f"{self.folder} holds traffic of model {self.spec.model!r}, and the bundle is for {name!r}; if that is "
                "the same traffic under another name, say so by --other-model"
            )

    def check_input(self, spec: InputSpec) -> None:
        """Raise DataError where the sample's items are no inputs of a model with this specification."""
        found, wanted = (self.spec.datatype, self.spec.shape), (spec.datatype, spec.wire_shape)
        if found != wanted:
            raise DataError(
                f"{self.folder} holds items {list(found[1])} of {found[0]}; the bundle's model takes "
                f"{list(wanted[1])} of {wanted[0]}"
            )

    def shards(self) -> Iterator[SampledItems]:
        """Yield the shards in their order of arrival; what is gone meanwhile is passed over. Raises as `read`."""
        yield from (shard.items for _, file in shards_in(self.folder) if (shard := self.read(file)) is not None)

    def read(self, file: Path) -> WrittenShard | None:
        """Read a shard; None where it is gone. Raises DataError for one that is damaged or foreign."""
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as shard:
                items = SampledItems(shard["images"], shard["rejected"], shard["p_values"], shard["seconds"])
                fact = os.fstat(stream.fileno())
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            raise DataError(f"{file} cannot be read: {error}") from error
        facts = (items.rejected, items.p_values, items.seconds)
        if items.images.shape[1:] != self.spec.shape or any(one.shape != items.images.shape[:1] for one in facts):
            raise DataError(f"{file} holds items of shape {list(items.images.shape[1:])}, or not one fact an item")
        return WrittenShard(file, (fact.st_dev, fact.st_ino, fact.st_size, fact.st_mtime_ns), items)


@dataclass(frozen=True, eq=False)
class WrittenShard:
    """A shard that was read."""

    file: Path
    identity: tuple[int, ...]  # of the file: another of the same name has another
    items: SampledItems


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
    partial = file.with_suffix(f".{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "wb", opener=private) as stream:
            stream.write(content)
            on_disk(stream)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def on_disk(stream: BinaryIO) -> None:
    """Have what was written to a file on the disk before its name is: else a crash may leave a name without content."""
    stream.flush()
    os.fsync(stream.fileno())


def is_json(file: Path) -> bool:
    """Whether a file is there and holds JSON, as one that a crash has cut off does not."""
    try:
        json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True
