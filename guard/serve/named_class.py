"""The class that a model server's answer names, in numbers or in words, whatever protocol brought it.

Rule 1: reading never fails, and never guesses: what does not show a class of each item shows none.

MLServer's scikit-learn runtime answers with `predict`, labels [item] or [item, 1], unless a client asks for
`predict_proba`, float64 [item, class]; whichever of the two a bundle names, both are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.manifest import OutputSpec

SCIKIT_LEARN = {"predict": "label", "predict_proba": "probabilities"}  # outputs of MLServer's runtime for it
MAX_FLOAT_LABEL_CODE = 2**53  # the largest class that a float tells from its neighbours; NaN names none
LENGTH_BYTES = 4  # before each text of a raw BYTES tensor


@dataclass(frozen=True)
class NamedOutput:
    """An output of an answer: `values` and `words` read its elements in a row, and are asked only where they count."""

    name: str
    datatype: str
    values: Callable[[], NDArray[Any] | None]  # None where there are not as many as its shape says
    words: Callable[[], list[bytes]]  # of BYTES; none where they cannot be told apart


def class_named(outputs: Sequence[NamedOutput], spec: OutputSpec, items: int) -> NDArray[np.int64] | None:
    """The class [item] that the outputs name; None where they do not show it."""
    for output in outputs:
        if output.name == spec.name and not (output.datatype == "BYTES" and spec.labels):
            values = output.values()
            return None if values is None else class_of_values(values, spec, items)
    found = worded_class(outputs, spec, items) if spec.labels else None
    return scikit_learn_class(outputs, spec, items) if found is None else found


def scikit_learn_class(outputs: Sequence[NamedOutput], spec: OutputSpec, items: int) -> NDArray[np.int64] | None:
    """The class [item] that an answer of MLServer's scikit-learn runtime names; None where it has none of its outputs.

    A label that no class has names none: it is of a model whose labels do not run from 0.
    """
    for output in outputs:
        kind = SCIKIT_LEARN.get(output.name)
        if kind is None or output.datatype == "BYTES" or (values := output.values()) is None:
            continue
        found = class_of_values(values, replace(spec, kind=kind, single=False), items)
        if found is not None and (kind != "label" or bool(((found >= 0) & (found < spec.classes)).all())):
            return found
    return None


def worded_class(outputs: Sequence[NamedOutput], spec: OutputSpec, items: int) -> NDArray[np.int64] | None:
    """The class [item] that an output of text names; None where none names a class of each item."""
    places = {name.encode(): number for number, name in enumerate(spec.labels)}
    for output in outputs:
        words = output.words() if output.datatype == "BYTES" else []
        if len(words) == items and all(word in places for word in words):
            return np.asarray([places[word] for word in words], dtype=np.int64)
    return None


def words_of(raw: bytes | memoryview) -> list[bytes]:
    """The elements of a raw BYTES tensor, each behind its length (4 bytes, little-endian); none where one is cut."""
    words, start = [], 0
    while start < len(raw):
        end = start + LENGTH_BYTES + int.from_bytes(raw[start : start + LENGTH_BYTES], "little")
        if end > len(raw):
            return []
        words.append(bytes(raw[start + LENGTH_BYTES : end]))
        start = end
    return words


def class_of_values(values: NDArray[Any], spec: OutputSpec, items: int) -> NDArray[np.int64] | None:
    if spec.kind == "label":
        whole = values.dtype.kind != "f" or bool((np.abs(values) <= MAX_FLOAT_LABEL_CODE).all())
        return in_places(values.astype(np.int64).ravel(), spec) if values.size == items and whole else None
    if values.size != items * spec.columns or np.isnan(values).any():
        return None
    if spec.single:
        threshold = 0.5 if spec.kind == "probabilities" else 0.0
        return (values > threshold).astype(np.int64).ravel()
    return np.asarray(values.reshape(items, spec.classes).argmax(axis=1), dtype=np.int64)


def in_places(labels: NDArray[np.int64], spec: OutputSpec) -> NDArray[np.int64] | None:
    """Labels [item] as places of classes, where the bundle's do not run from 0; None where one is of no class."""
    if not spec.numbers:
        return labels
    places = {number: place for place, number in enumerate(spec.numbers)}
    found = [places.get(label, -1) for label in labels.tolist()]
    return None if -1 in found else np.asarray(found, dtype=np.int64)
