"""Labels of a table in Arrow's types: class numbers, texts, or numbers whose names the table declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.arrow_values import NUMBER, TEXT, check_present, kind_of, leaf, stored
from guard.class_names import WHOLE, NamedLabels, of_codes, of_declared, of_numbers
from guard.columns import bad_value
from guard.errors import DataError

MAX_EXACT_STEPS = 2**53  # of a decimal


def read_labels(
    batches: Iterator[Any],
    class_names: Mapping[str, tuple[str, ...]],
    name: str,
    known: Sequence[str],
    source: str,
    order: Callable[[], tuple[str, ...]],
) -> NamedLabels:
    """Read a column of labels, by the names that the table declares for it, or that are known.

    `order` reads the texts in the order that the table declares; it is asked only where no names are known.

    Raises:
        DataError: a label is missing or no class; its row is named.
    """
    texts, found, row = Texts(source, name), [], 1
    for batch in batches:
        column = stored(batch.column(0))
        check_present(column, source, name, row, "a label")
        kind = kind_of(column.type)
        if kind == TEXT:
            found.append(texts.codes(column, row))
        elif kind == NUMBER:
            numbers = whole_numbers(leaf(column), source, name, row)
            found.append(checked(numbers, class_names.get(name, ()), source, name, row))
        else:
            seen = column[0].as_py() if len(column) else None
            raise bad_value(f"{source}: row {row}", name, seen, f"whole class numbers or names, not {column.type}")
        row += len(column)
    numbers = np.concatenate(found)
    if texts.places:
        declared = () if known else order()
        declared = () if all(WHOLE.fullmatch(word) for word in declared) else declared
        return of_codes(numbers, list(texts.words), known or declared, texts.places, name)
    if class_names.get(name):
        return of_declared(numbers, class_names[name], known, source)
    return of_numbers(numbers, known, name)


def whole_numbers(values: NDArray[Any], source: str, name: str, row: int) -> NDArray[Any]:
    """Return class numbers that are written as integers, booleans or decimals. Raises DataError for one not whole."""
    if values.dtype.kind in "iu":
        return values
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    bad = ~np.isfinite(values) | (values != np.rint(values)) | (np.abs(values) > MAX_EXACT_STEPS)
    if bad.any():
        item = int(np.argmax(bad))
        raise bad_value(f"{source}: row {row + item}", name, float(values[item]), "whole class numbers or names")
    return values.astype(np.int64)


class Texts:
    """The texts that were seen, each with its code and the place of its first row."""

    def __init__(self, source: str, name: str) -> None:
        self.source, self.name = source, name
        self.words: dict[str, int] = {}
        self.places: list[str] = []

    def codes(self, column: Any, row: int) -> NDArray[np.int64]:
        """Return the codes of a column of texts, whose first row is `row`."""
        coded = column.dictionary_encode()
        indices = coded.indices.to_numpy(zero_copy_only=False)
        words = [word.strip() for word in coded.dictionary.to_pylist()]
        for code, word in enumerate(words):
            if word not in self.words:
                self.words[word] = len(self.words)
                self.places.append(f"{self.source}: row {row + int(np.argmax(indices == code))}")
        mapped: NDArray[np.int64] = np.asarray([self.words[word] for word in words], dtype=np.int64)[indices]
        return mapped


def checked(numbers: NDArray[Any], names: Sequence[str], source: str, name: str, row: int) -> NDArray[np.int64]:
    """Return class numbers as int64. Raises DataError for one below zero, or that has no name among those declared."""
    limit = len(names) or np.iinfo(np.int64).max
    bad = (numbers < 0) | (numbers >= limit)
    if bad.any():
        item = int(np.argmax(bad))
        wanted = f"0 to {limit - 1}, the classes that it declares" if names else "class numbers from 0"
        unlabelled = "; -1 says that there is no label" if numbers[item] == -1 else ""
        raise DataError(
            f"{source}: row {row + item}, column {name!r}: label {numbers[item]}; wanted {wanted}{unlabelled}"
        )
    return numbers.astype(np.int64)
