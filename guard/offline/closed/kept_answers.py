"""Answers of a closed model as shares of classes, each asked once, and kept in a file where that is worth it.

Rule 1: a record that was not written whole is not there: the file is cut to whole ones, and goes on from them.
Rule 2: a file is named by all that its answers follow from.

How it works. An item is known by a digest of its wire values. What is not known yet is asked in batches; after each,
the batch's records are appended: digest, shares, and a checksum over both.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.offline.closed.answer_form import AnswerForm
from guard.offline.closed.closed_model import ClosedModel
from guard.value_box import ValueBox

DIGEST_BYTES = 16
Progress = Callable[[int, int], None]  # (items answered, items asked)


class KeptAnswers:
    """A closed model's answers to unit-space items, from memory and file where they are known."""

    def __init__(self, model: ClosedModel, form: AnswerForm, box: ValueBox, folder: Path | None = None) -> None:
        self.model, self.form, self.box = model, form, box
        self.known: dict[bytes, NDArray[np.float32]] = {}
        self.asked_items = 0
        self.turn = threading.Lock()
        self.file: Path | None = None
        if folder is not None and model.kept:
            shape = (model.identity, form.key, box.low, box.high, box.layout, str(box.dtype))
            self.file = folder / f"answers-{hashlib.sha256(repr(shape).encode()).hexdigest()[:24]}.bin"
            self.read()

    def __call__(self, unit: NDArray[np.float32], progress: Progress | None = None) -> NDArray[np.float32]:
        """Return shares [item, class] of unit-space items. Raises ModelError where the model cannot answer."""
        if not len(unit):
            return np.zeros((0, self.form.classes), np.float32)
        wire = self.box.from_unit(unit)
        digests = [hashlib.blake2b(one.tobytes(), digest_size=DIGEST_BYTES).digest() for one in wire]
        with self.turn:
            fresh = {digest: place for place, digest in enumerate(digests) if digest not in self.known}
            places, names, step = list(fresh.values()), list(fresh), self.model.batch_items
            for start in range(0, len(places), step):
                part = places[start : start + step]
                self.keep(names[start : start + step], self.ask(wire[part]))
                if progress is not None:
                    progress(start + len(part), len(places))
            return np.stack([self.known[digest] for digest in digests])

    def predict(self, unit: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the class that the model names for each unit-space item [item]."""
        return np.asarray(self(unit).argmax(axis=1), dtype=np.int64)

    def ask(self, wire: NDArray[Any]) -> NDArray[np.float32]:
        self.asked_items += len(wire)
        return self.form.shares(self.model.ask(wire), len(wire))

    def keep(self, digests: list[bytes], shares: NDArray[np.float32]) -> None:
        """Remember answers, and append them to the file."""
        self.known.update(zip(digests, shares, strict=True))
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        records = [digest + one.astype("<f4").tobytes() for digest, one in zip(digests, shares, strict=True)]
        with self.file.open("ab") as stream:
            stream.write(b"".join(record + zlib.crc32(record).to_bytes(4, "little") for record in records))

    def read(self) -> None:
        """Read the records of the file, and cut off what is not whole."""
        if self.file is None or not self.file.is_file():
            return
        content, size = self.file.read_bytes(), DIGEST_BYTES + 4 * self.form.classes + 4
        good = 0
        for start in range(0, len(content) - size + 1, size):
            record = content[start : start + size]
            if zlib.crc32(record[:-4]) != int.from_bytes(record[-4:], "little"):
                break
            self.known[record[:DIGEST_BYTES]] = np.frombuffer(record[DIGEST_BYTES:-4], "<f4").astype(np.float32)
            good = start + size
        if good != len(content):
            with self.file.open("r+b") as stream:
                stream.truncate(good)
