"""Training data of a second network: the model's own, without what the guard is calibrated and tested on.

Rule 1: nothing that a threshold or a figure comes from is learned by heart: items of all splits but the heads' are
taken out by content hash. A copy in another encoding, such as JPEG, has another hash and is not found.
Rule 2: items are in the order of their hashes, so that the first of them are of all classes, however a file is sorted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.arrays import read_examples
from guard.data_file import Reading
from guard.errors import DataError
from guard.offline.data.dataset import Dataset, dataset_of
from guard.offline.data.splits import Split
from guard.offline.job.class_checks import check_held_out, label_notes
from guard.offline.job.job import Job
from guard.offline.model.classifier import Classifier

MAX_HELD_OUT_ITEMS, HELD_OUT_SHARE = 1000, 0.1  # of the items: on which the network is judged
MIN_LESSON_ITEMS = 100
UNLEARNED = (Split.COMBINER, Split.CALIBRATE, Split.TEST)


@dataclass(frozen=True, eq=False)
class SecondData:
    """Items that a second network learns from, and those that it is judged on while it learns."""

    learned: Dataset
    held_out: Dataset
    taken_out: int  # items of the guard's own data that were found among them
    notes: tuple[str, ...] = ()  # what was found when they were read

    @property
    def hashes(self) -> NDArray[np.str_]:
        """Content hashes of all of them, each once."""
        return np.unique(np.concatenate([self.learned.hashes, self.held_out.hashes]))

    @property
    def in_words(self) -> str:
        out = (
            f"; {self.taken_out:,} were taken out, which the guard is calibrated or tested on" if self.taken_out else ""
        )
        items = f"{len(self.learned):,} items of {self.learned.name} to learn from"
        return f"{items}, {len(self.held_out):,} to be judged on{out}"


def read_lessons(job: Job, classifier: Classifier, data: Dataset, progress: Reading | None = None) -> SecondData:
    """Read --second-data. Raises DataError: it cannot be read, has other items or classes, or too few are left."""
    output, file = classifier.spec.output, job.second_data
    if file is None:
        raise DataError("there is no --second-data to read")
    examples = read_examples(file, layout=job.data_layout, classes=output.labels, choice=job.choice, progress=progress)
    check_held_out(examples, output)
    found = dataset_of(examples, classifier.spec.input)
    unlearned = [one for one, split in data.splits.items() if split in UNLEARNED]
    known = np.isin(found.hashes, np.asarray(unlearned, dtype=found.hashes.dtype))
    left = found.take(~known) if known.any() else found
    different = len(np.unique(left.hashes))
    if different < MIN_LESSON_ITEMS:
        copies = f", and {len(left) - different} copies of them" if different < len(left) else ""
        raise DataError(
            f"--second-data {file}: {different} items are left to learn from{copies} ({int(known.sum())} of "
            f"{len(found)} are those that the guard is calibrated or tested on); wanted at least {MIN_LESSON_ITEMS}, "
            "better tens of thousands: the model's own training data"
        )
    notes = (*found.notes, *label_notes(examples, found.hashes, output.classes))
    return SecondData(*divided(left), int(known.sum()), notes)


def divided(found: Dataset) -> tuple[Dataset, Dataset]:
    """Divide items into those to learn from and those to judge by, by their hashes: copies of an item stay together."""
    different = np.unique(found.hashes)
    count = max(1, min(MAX_HELD_OUT_ITEMS, round(HELD_OUT_SHARE * len(different))))
    order = np.argsort(found.hashes, kind="stable")
    held = np.isin(found.hashes[order], different[:count])
    return found.take(order[~held]), found.take(order[held])
