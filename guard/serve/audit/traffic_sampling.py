"""The unbiased sample of traffic that a serving guard keeps: one store for each bundle that judged.

Rule 1: which items are kept is drawn when they arrive, before anything is known of their verdict.
Rule 2: a drawn item is kept however its request ends: rejected, failed, or left by its client. What is lost is lost by
        the room in the queue and the disk, whatever the verdict; a large request goes into the queue in pieces.
Rule 3: every store keeps the bound of age, those of bundles that are retired and of a guard that is idle, too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.serve.audit.background import Background, reason_of
from guard.serve.audit.metrics import AuditMetrics
from guard.traffic_sample import MANIFEST, SampledItems, SampleSpec, SampleWriter, prune, shards_in

MAX_WAITING_BYTES = 32 << 20
MAX_PIECE_BYTES = 4 << 20  # of a request's items that go into the queue at once
FLUSH_S = 60.0  # after which sampled items are on disk, though their shard is not full


@dataclass(eq=False)
class TrafficSampling:
    """The drawing of items on the event loop, and the writers of the stores, which a thread calls."""

    folder: Path
    share: float
    max_bytes: int  # of each store
    max_age_s: float
    metrics: AuditMetrics
    generator: np.random.Generator = field(default_factory=np.random.default_rng)  # seeded by the system's entropy
    writers: dict[str, SampleWriter] = field(default_factory=dict)  # by bundle digest; the thread's alone

    def __post_init__(self) -> None:
        """Start the thread that calls the writers."""
        self.background = Background(
            "sample",
            max_waiting_bytes=MAX_WAITING_BYTES,
            lost=self.metrics.losing("sample"),
            idle=self.flush,
            idle_s=FLUSH_S,
        )

    def draw(self, items: int) -> NDArray[np.bool_]:
        """Draw which of `items` are kept."""
        drawn: NDArray[np.bool_] = self.generator.random(items) < self.share
        return drawn

    def keep(self, bundle: Bundle, items: SampledItems) -> None:
        """Have drawn items written, which a call is done with."""
        step = max(1, MAX_PIECE_BYTES // max(1, items.images[0].nbytes)) if len(items.images) else 1
        for start in range(0, len(items.images), step):
            piece = items.part(slice(start, start + step))
            size_bytes = piece.images.nbytes + 32 * len(piece.images)
            self.background.submit(size_bytes, partial(self.write, bundle, piece), count=len(piece.images))

    def write(self, bundle: Bundle, items: SampledItems) -> None:
        """Hand items to their store's writer; called on the thread."""
        self.attempt(bundle.digest, lambda: self.writer(bundle).add(items), items)

    def flush(self) -> None:
        """Write what waits in every store, and remove what is too old; called on the thread."""
        for digest, writer in list(self.writers.items()):
            self.attempt(digest, writer.flush)
        if self.folder.is_dir():
            for store in self.folder.iterdir():
                with suppress(OSError):
                    self.prune(store)

    def prune(self, store: Path) -> None:
        """Remove what is too old from a store, and the store where nothing is left in it and nothing writes to it."""
        manifest, now = store / MANIFEST, time.time()
        if not manifest.is_file():
            return
        prune(store, now, max_bytes=self.max_bytes, max_age_s=self.max_age_s)
        is_used = store in [writer.folder for writer in self.writers.values()]
        if not is_used and not shards_in(store) and manifest.stat().st_mtime < now - self.max_age_s:
            manifest.unlink()
            store.rmdir()

    def attempt(self, digest: str, work: Callable[[], None], items: SampledItems | None = None) -> None:
        """Carry out a write and count the items that reached the disk, or count all that were lost by it."""
        writer = self.writers.get(digest)
        before = 0 if writer is None else waiting_items(writer)
        before += 0 if items is None else len(items.images)
        try:
            work()
        except Exception as error:  # noqa: BLE001  the folder may be gone: the next item makes it anew
            self.writers.pop(digest, None)
            if writer is not None and reason_of(error) == "disk_full":
                remove_oldest(writer.folder)
            self.metrics.count_lost("sample", reason_of(error), before)
            return
        self.metrics.written.labels("sample").inc(before - waiting_items(self.writers[digest]))

    def writer(self, bundle: Bundle) -> SampleWriter:
        """The writer of the bundle's store, made with its folder where there is none. Raises OSError, DataError."""
        if (writer := self.writers.get(bundle.digest)) is None:
            spec = bundle.manifest.model
            sample = SampleSpec.of(spec.input, share=self.share, bundle=bundle.digest, model=spec.name)
            name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', spec.name)[:40]}-{bundle.digest[:12]}-{self.share:g}"
            writer = self.writers[bundle.digest] = SampleWriter(
                self.folder / name,
                sample,
                self.generator,
                max_bytes=self.max_bytes,
                max_age_s=self.max_age_s,
                shard_bytes=min(4 << 20, max(1, self.max_bytes // 8)),
            )
        return writer

    def close(self) -> None:
        """Take nothing more, and write what was taken, as far as there is time."""
        self.background.close()


def remove_oldest(folder: Path) -> None:
    """Remove a store's oldest shard, but for the last one: age decides, so what is left is as unbiased as before."""
    with suppress(OSError):
        shards = shards_in(folder)
        if len(shards) > 1:
            shards[0][1].unlink()


def waiting_items(writer: SampleWriter) -> int:
    """The items that a writer has taken and not written yet."""
    return sum(len(part.images) for part in writer.waiting)
