"""Labels of a table's rows as class numbers: numbers as they stand, names by their order.

Rule 1: labels are numbers, or names, and never both. Names are sorted as text, capitals first, as class folders are;
names that the file itself declares, or that a bundle knows already, keep their order.
Rule 2: what tools write for a missing value is no class, unless a class is known or declared by that name; a class
called `none`, `NA` or `-` is one, and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.columns import MISSING, bad_value, listed, missing
from guard.errors import DataError

WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")  # also 2.0, as a column is written that had a gap once
NO_CLASS = {"", "nan", "NaN", "None", "<NA>"}  # as pandas and numpy write a value that is missing
DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class NamedLabels:
    """The class numbers of rows, and the names by number where there are any."""

    numbers: NDArray[np.int64]  # [item]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def of_codes(
    codes: NDArray[np.int64], words: Sequence[str], known: Sequence[str], places: Sequence[str], column: str
) -> NamedLabels:
    """Turn labels that are texts into class numbers.

    `words[code]` is the text of a row, and `places[code]` where it was seen first: `FILE: row 3 (line 4)`.

    Raises:
        DataError: a label is missing, a number among names or not whole, or a name is not known.
    """
    for code, word in enumerate(words):
        if word in NO_CLASS and word not in known:
            wanted = f"a label{' (a class of that name is declared by an ordered dictionary)' if word else ''}"
            raise missing(places[code], column, word, wanted)
    numbered = [code for code, word in enumerate(words) if WHOLE.fullmatch(word)]
    others = [code for code, word in enumerate(words) if not WHOLE.fullmatch(word)]
    if not others:
        return of_numbers(np.asarray([whole(word) for word in words], dtype=np.int64)[codes], known, column)
    if known:
        for code, word in enumerate(words):
            if word not in known:
                raise bad_value(places[code], column, word, f"one of the classes known, {listed(known)}")
        return renumbered(codes, words, known)
    if numbered:
        code = others[0]
        raise bad_value(places[code], column, words[code], f"a class number, as {words[numbered[0]]} is: all, or none")
    if broken := [code for code in others if DECIMAL.fullmatch(words[code])]:
        wanted = "whole class numbers, or names that are no numbers"
        raise bad_value(places[broken[0]], column, words[broken[0]], wanted)
    return renumbered(codes, words, sorted(words))


def whole(word: str) -> int:
    """Return the number that a word writes, for example 2 for `2` and for `2.0`."""
    return int(word.partition(".")[0])


def of_numbers(numbers: NDArray[np.int64], known: Sequence[str], column: str) -> NamedLabels:
    """Return labels that are class numbers. Raises DataError where they could as well be the names of classes."""
    if moved := [
        (number, name) for number, name in enumerate(known) if WHOLE.fullmatch(name) and whole(name) != number
    ]:
        number, name = moved[0]
        raise DataError(
            f"column {column!r} holds numbers, and the classes known are called by numbers other than their own: "
            f"{name} may be class {name}, or the class called {name!r}, which is {number}; wanted class numbers in an "
            ".npz, or class folders"
        )
    return NamedLabels(numbers)


def renumbered(codes: NDArray[np.int64], words: Sequence[str], names: Sequence[str]) -> NamedLabels:
    """Return the numbers of words by their places among names."""
    place = {name: number for number, name in enumerate(names)}
    numbers = np.asarray([place[word] for word in words], dtype=np.int64)[codes]
    return NamedLabels(numbers, tuple(names), tuple(remarks(names)))


def of_declared(numbers: NDArray[np.int64], names: Sequence[str], known: Sequence[str], source: str) -> NamedLabels:
    """Return class numbers whose names a file declares, by the names that are known where there are any."""
    if not known or tuple(known) == tuple(names):
        return NamedLabels(numbers, tuple(names), tuple(remarks(names)))
    if unknown := [name for name in names if name not in known]:
        raise DataError(f"{source}: class {unknown[0]!r} is not known; wanted those of {listed(known)}")
    return renumbered(numbers, names, known)


def remarks(names: Iterable[str]) -> list[str]:
    """Say in which order the classes are."""
    every = list(names)
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(every[:12]))
    odd = [name for name in every if name.strip().lower() in MISSING]
    said = [f"classes that are called as if their label were missing: {listed(odd)}"] if odd else []
    return [f"classes by label: {shown}{', …' if every[12:] else ''}", *said]
