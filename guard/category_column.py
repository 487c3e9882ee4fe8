"""A column of a table that holds categories in words: each word a code, its place in the order of the categories.

Rule 1: words that a bundle or a feature file knows keep their order, and another word is refused by its row; words that
are found are sorted as text, capitals first, as the names of classes are.
Rule 2: a column in which numbers stand among words is refused: one of the two is a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from guard.columns import MISSING, bad_value, listed, missing
from guard.errors import DataError
from guard.features import near_to

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
MAX_CATEGORY_VALUES = 1000
MAX_ROWS_SHARE = 0.5  # of the rows may each have a word of their own; of more, the words are no categories
MIN_JUDGED_VALUES = 20  # fewer are categories whatever their share
MAX_WORD_CHARACTERS = 60

Place = Callable[[int], str]  # of a row of a block, `FILE: row 3 (line 4)`


@dataclass
class CategoryColumn:
    """Words of one column as codes, while its rows pass."""

    name: str
    known: tuple[str, ...] = ()  # in the order of their codes; none: they are to be found
    words: dict[str, int] = field(default_factory=dict)  # code in the order in which they were seen
    places: list[str] = field(default_factory=list)  # of each word's first row
    counts: list[int] = field(default_factory=list)

    def codes(self, texts: Sequence[str | None], place: Place) -> NDArray[np.int64]:
        """Return codes of further rows, as they were first seen. Raises DataError for a missing or unknown word."""
        return np.asarray([self.code(text, row, place) for row, text in enumerate(texts)], dtype=np.int64)

    def code(self, text: str | None, row: int, place: Place) -> int:
        word = "" if text is None else text.strip()
        if word not in self.words:
            if not word or (word.lower() in MISSING and word not in self.known):
                raise missing(place(row), self.name, word, "a category (a word that means one is stated in --features)")
            if self.known and word not in self.known:
                meant = near_to(word, self.known)
                wanted = f"one of the categories known, {listed(self.known)}{f': {meant}' if meant else ''}"
                raise bad_value(place(row), self.name, word, wanted)
            self.words[word] = len(self.words)
            self.places.append(place(row))
            self.counts.append(0)
        self.counts[self.words[word]] += 1
        return self.words[word]

    def finish(self, source: str) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """Return what each code becomes, and the words in their order. Raises DataError for what is no category."""
        numbered = all(NUMBER.fullmatch(word) for word in self.words)  # codes that are kept as text
        order = self.known or tuple(sorted(self.words, key=(lambda word: (float(word), word)) if numbered else None))
        if not self.known:
            self.check_found(source)
        place = {word: code for code, word in enumerate(order)}
        return np.asarray([place[word] for word in self.words], dtype=np.float32), order

    def check_found(self, source: str) -> None:
        """Check that the words found are categories. Raises DataError."""
        numbers = [word for word in self.words if NUMBER.fullmatch(word)]
        if 0 < len(numbers) < len(self.words):
            rows = sum(self.counts[self.words[word]] for word in numbers)
            odd = [w for w in self.words if w not in numbers] if 2 * rows > sum(self.counts) else numbers
            as_wanted = "a number" if odd[0] not in numbers else "a word"
            raise bad_value(
                self.places[self.words[odd[0]]],
                self.name,
                odd[0],
                f"{as_wanted}, as in most other rows; where both are categories, state them in --features",
            )
        long = [word for word in self.words if len(word) > MAX_WORD_CHARACTERS]
        many = len(self.words) > max(MIN_JUDGED_VALUES, MAX_ROWS_SHARE * sum(self.counts))
        if many or len(self.words) > MAX_CATEGORY_VALUES or long:
            raise DataError(
                f"{source}: column {self.name!r} holds {len(self.words)} different texts in {sum(self.counts)} rows, "
                f"such as {(long or list(self.words))[0][:MAX_WORD_CHARACTERS]!r}; wanted few categories: leave it out "
                f"(--drop-column {self.name!r}), or state its categories in --features"
            )
