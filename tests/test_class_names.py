"""Labels of tables: numbers stay, names are ordered, and what could be either is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from guard.class_names import NamedLabels, of_codes, of_declared
from guard.errors import DataError


def labels(*texts: str, known: Sequence[str] = ()) -> NamedLabels:
    words = list(dict.fromkeys(texts))
    places = [f"x: row {texts.index(word) + 1}" for word in words]
    return of_codes(np.asarray([words.index(text) for text in texts]), words, known, places, "kind")


@pytest.mark.parametrize(
    ("texts", "known", "numbers", "names"),
    [
        ("2 0 10", "", [2, 0, 10], ""),
        ("bee ant bee Cow", "", [2, 1, 2, 0], "Cow ant bee"),
        ("bee ant", "cow bee ant", [1, 2], "cow bee ant"),
        ("2 0", "0 1 2", [2, 0], ""),
        ("1 0", "cow bee", [1, 0], ""),
        ("3 bee", "bee 3", [1, 0], "bee 3"),
    ],
)
def test_numbers_stay_and_names_have_an_order(texts: str, known: str, numbers: list[int], names: str) -> None:
    found = labels(*texts.split(), known=known.split())
    assert (found.numbers.tolist(), found.names) == (numbers, tuple(names.split()))


@pytest.mark.parametrize(
    ("texts", "known", "words"),
    [
        ("3 bee 4", "", "x: row 2, column 'kind': 'bee'; wanted a class number, as 3 is"),
        ("bee elk", "ant bee", "x: row 2, column 'kind': 'elk'; wanted one of the classes known, 'ant', 'bee'"),
        ("1 2", "1 2 3", "1 may be class 1, or the class called '1', which is 0"),
    ],
)
def test_what_is_no_class_or_either_of_two_is_refused(texts: str, known: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        labels(*texts.split(), known=known.split())


def test_declared_names_are_found_among_those_known() -> None:
    numbers = np.asarray([0, 1, 0])
    assert of_declared(numbers, ("b", "a"), (), "x").names == ("b", "a")
    assert of_declared(numbers, ("b", "a"), ("a", "c", "b"), "x").numbers.tolist() == [2, 0, 2]
    with pytest.raises(DataError, match="class 'b' is not known; wanted those of 'a', 'c'"):
        of_declared(numbers, ("b", "a"), ("a", "c"), "x")
