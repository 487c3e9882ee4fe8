"""Checks of labels and of names of classes against the classes of a model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from guard.data_file import DataFile
from guard.errors import DataError
from guard.manifest import OutputSpec


def check_labels(labels: NDArray[np.int64], classes: int, source: str) -> None:
    """Check that the model has every label. Raises DataError."""
    if int(labels.max()) < classes:
        return
    bad = int(np.flatnonzero(labels >= classes)[0])
    from_one = int(labels.min()) == 1 and int(labels.max()) == classes
    raise DataError(
        f"{source}: item {bad} has label {int(labels[bad])}; the model has classes 0 to {classes - 1}"
        + (f"; labels run from 1 to {classes}: subtract 1" if from_one else "")
    )


def check_folders(examples: DataFile, classes: int) -> None:
    """Check that classes known by name can be the model's. Raises DataError."""
    names, empty = examples.classes, examples.empty
    if len(names) > classes:
        raise DataError(
            f"{examples.source}: {len(names)} {examples.class_noun} ({', '.join(names[:12])}); the model has {classes} "
            "classes: take out what is no class; a folder may be hidden (.name)"
        )
    if empty and len(names) < classes == len(names) + len(empty):
        raise DataError(
            f"{examples.source}: the model has {classes} classes, and there are as many folders only with those that "
            f"hold no picture ({', '.join(empty)}); their places would move the others: put a picture there, or name "
            "the folders by class number"
        )


def check_held_out(examples: DataFile, output: OutputSpec) -> None:
    """Check that the classes of data beside those trained on are the model's. Raises DataError."""
    check_labels(examples.labelled(), output.classes, examples.source)
    check_folders(examples, output.classes)
    words = [name for name in examples.classes if not name.isdigit()]
    if words and not output.labels and len(examples.classes) < output.classes:
        raise DataError(
            f"{examples.source}: {len(examples.classes)} {examples.class_noun} of the model's {output.classes} classes "
            f"({', '.join(words[:12])}), and what the classes are called is not known, since the data trained on name "
            "none; wanted class numbers"
        )


def label_notes(examples: DataFile, hashes: NDArray[np.str_], classes: int) -> list[str]:
    """Say which classes have no items, and which items have several labels."""
    notes, labels = [], examples.labelled()
    absent = sorted(set(range(classes)) - set(labels.tolist()))
    if absent and not examples.classes:
        notes.append(f"classes without items: {', '.join(map(str, absent[:12]))}{', …' if absent[12:] else ''}")
    if len(examples.classes) in range(1, classes):
        notes.append(
            f"{len(examples.classes)} {examples.class_noun} for {classes} classes of the model; their order decides"
        )
    _, first, item = np.unique(hashes, return_index=True, return_inverse=True)
    differ = np.flatnonzero(labels != labels[first[item]])
    if len(differ):
        one, other = int(first[item[differ[0]]]), int(differ[0])
        notes.append(f"{len(differ)} items are copies with another label, such as items {one} and {other}")
    return notes
