"""A strict reader of JSON: what two parsers could read differently is an error, and arrays of numbers stay text.

How it works. Python's json holds every other thread up until it is done, which takes a second for 32 MB, and keeps the
last of two equal keys where other parsers keep the first. So only names, shapes and parameters become values here, of
which there is little. An array under the key `data` that holds nothing but digits is kept as `Numbers`, its place in
the text; `Numbers.values` converts it by pieces, between which other threads run. Example: in
`{"shape": [1, 2], "data": [0.5, 1]}` the shape becomes [1, 2], and the data `Numbers` from 25 to 33.

Rule 1: equal keys of one object, NaN and Infinity, half a surrogate pair, what follows the document, and depth without
        end are errors.
Rule 2: what is no number of a `data` array is bounded by `MAX_OTHER_CHARACTERS`, whatever it consists of.
Rule 3: `Numbers` are not known to be JSON before their `values` are; the caller reads all of them, or refuses.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import MalformedRequest

NUMBERS_KEY = "data"
MAX_OTHER_CHARACTERS = 128 * 1024
MAX_NESTED_STEPS = 16
PIECE_CHARACTERS = 256 * 1024  # converted at a time: some 10 ms
SCANNED_CHARACTERS = 2**20  # looked through at a time

SPACE = re.compile(r"[ \t\n\r]*+")
SCALAR = re.compile(
    r'"(?:[^"\\\x00-\x1f]++|\\.)*+"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+|true|false|null'
)
NUMERIC = re.compile(r"[\[\]0-9eE+\-., \t\n\r]*+")
SURROGATE = re.compile("[\ud800-\udfff]")  # without its other half: of both, json makes one character
BRACKETS = re.compile(r"[\[\], \t\n\r]*+")
FLOATS = json.JSONDecoder(parse_int=float)


@dataclass(frozen=True)
class Numbers:
    """An array of numbers that is still text: `text[start:end]`, its brackets included."""

    text: str = field(repr=False)
    start: int
    end: int

    @property
    def count(self) -> int:
        """The number of elements, if it is an array at all; 1 where it is empty."""
        return self.text.count(",", self.start, self.end) + 1

    @property
    def is_flat(self) -> bool:
        return self.text.count("[", self.start, self.end) == 1

    def values(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """The elements of an array that is flat or nested as `shape`, in that shape. Raises MalformedRequest."""
        count = math.prod(shape)
        if self.count != count:
            raise MalformedRequest(f"data has {self.count} elements; shape {list(shape)} takes {count}")
        found = np.empty(count)
        place, filled = self.start, 0
        axes = (count,) if self.is_flat else tuple(shape)
        rows = math.prod(axes[:-1])
        for row in range(rows + 1):
            place = self.pass_brackets(place, between_rows(row, axes), shape)
            if row == rows:
                break
            close = self.text.find("]", place, self.end)
            if self.text.count(",", place, close) + 1 != axes[-1]:
                raise ragged(shape)
            place = self.fill(found[filled : filled + axes[-1]], place, close, shape)
            filled += axes[-1]
        if place != self.end:
            raise ragged(shape)
        return found.reshape(tuple(shape))

    def pass_brackets(self, place: int, wanted: str, shape: Sequence[int]) -> int:
        """Return the place behind the brackets that separate two rows."""
        match = BRACKETS.match(self.text, place, min(self.end, place + len(wanted) + MAX_OTHER_CHARACTERS))
        if match is None or re.sub(r"[ \t\n\r]", "", match.group()) != wanted:
            raise ragged(shape)
        return match.end()

    def fill(self, row: NDArray[np.float64], place: int, close: int, shape: Sequence[int]) -> int:
        """Convert the numbers from `place` to `close` into a row."""
        filled = 0
        while place < close:
            cut = min(close, place + PIECE_CHARACTERS)
            if cut < close and (cut := self.text.find(",", cut, close)) < 0:
                cut = close
            try:
                part = FLOATS.decode(f"[{self.text[place:cut]}]")
            except ValueError:
                raise MalformedRequest("data holds something that is no number of JSON") from None
            if filled + len(part) > len(row):
                raise ragged(shape)
            row[filled : filled + len(part)] = part
            filled, place = filled + len(part), cut + 1
        if filled != len(row):
            raise ragged(shape)
        return close


def ragged(shape: Sequence[int]) -> MalformedRequest:
    return MalformedRequest(
        f"data is not nested as its shape {list(shape)} says; send rows of equal length, or one list"
    )


def between_rows(row: int, axes: Sequence[int]) -> str:
    """The brackets in front of a row: of [2, 2, 3] they are `[[[`, `],[`, `]],[[`, `],[`, and `]]]` at the end."""
    if row == 0:
        return "[" * len(axes)
    closed, rest = 1, row
    for size in reversed(axes[:-1]):
        if rest % size:
            break
        closed, rest = closed + 1, rest // size
    return "]" * closed if closed == len(axes) and row == math.prod(axes[:-1]) else f"{']' * closed},{'[' * closed}"


class StrictJson:
    """A reader of one document."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.number_characters = 0  # of arrays that stay text
        self.kept: list[Numbers] = []

    def document(self) -> Any:
        """The value of the whole text. Raises MalformedRequest."""
        self.space()
        found = self.value(0, may_stay_text=False)
        self.space()
        if self.place != len(self.text):
            raise MalformedRequest(f"something follows the JSON document, at character {self.place}")
        return found

    def space(self) -> None:
        limit = self.place + MAX_OTHER_CHARACTERS
        self.go(SPACE.match(self.text, self.place, limit + 1))

    def go(self, match: re.Match[str] | None) -> str:
        """Move behind a match, and return its text."""
        if match is None:
            raise MalformedRequest(
                f"the request is no JSON, or too long a text stands in it, at character {self.place}"
            )
        self.place = match.end()
        self.check_length()
        return match.group()

    def check_length(self) -> None:
        if self.place - self.number_characters > MAX_OTHER_CHARACTERS:
            raise MalformedRequest(
                f"more than {MAX_OTHER_CHARACTERS} characters of the request are no numbers of a tensor; send names, "
                "shapes and parameters with little space between"
            )

    def value(self, depth: int, *, may_stay_text: bool) -> Any:
        head = self.text[self.place : self.place + 1]
        if head in ("{", "[") and depth >= MAX_NESTED_STEPS:
            raise MalformedRequest(f"the JSON is more than {MAX_NESTED_STEPS} levels deep")
        if head == "{":
            return self.object(depth)
        if head == "[":
            numbers = self.numbers() if may_stay_text else None
            return self.array(depth) if numbers is None else numbers
        text = self.go(SCALAR.match(self.text, self.place, self.place + MAX_OTHER_CHARACTERS))
        try:
            found = json.loads(text)
        except ValueError:
            raise MalformedRequest(f"the request is no JSON, at character {self.place - len(text)}") from None
        if "\\" in text and SURROGATE.search(found):
            raise MalformedRequest(
                f"the text at character {self.place - len(text)} has half of a surrogate pair, which is no character"
            )
        return found

    def object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.opened("{", "}"):
            while True:
                if self.text[self.place : self.place + 1] != '"':
                    raise MalformedRequest(f"the request is no JSON: a key is missing at character {self.place}")
                key = self.value(depth + 1, may_stay_text=False)
                if key in found:
                    raise MalformedRequest(
                        f"the key {key[:40]!r} stands twice in one object; parsers disagree on which counts"
                    )
                self.space()
                self.punctuation(":")
                found[key] = self.value(depth + 1, may_stay_text=key == NUMBERS_KEY)
                if not self.another("}"):
                    break
        return found

    def array(self, depth: int) -> list[Any]:
        found: list[Any] = []
        if self.opened("[", "]"):
            found.append(self.value(depth + 1, may_stay_text=False))
            while self.another("]"):
                found.append(self.value(depth + 1, may_stay_text=False))
        return found

    def opened(self, opening: str, closing: str) -> bool:
        """Pass an opening bracket; False where the closing one follows, which is passed, too."""
        self.punctuation(opening)
        if self.text[self.place : self.place + 1] == closing:
            self.place += 1
            return False
        return True

    def another(self, closing: str) -> bool:
        """Pass what follows an element: a comma (True), or the closing bracket."""
        self.space()
        if self.text[self.place : self.place + 1] == closing:
            self.place += 1
            return False
        self.punctuation(",")
        return True

    def punctuation(self, wanted: str) -> None:
        """Pass one character, and the space behind it."""
        if self.text[self.place : self.place + 1] != wanted:
            raise MalformedRequest(f"the request is no JSON: {wanted!r} is missing at character {self.place}")
        self.place += 1
        self.space()

    def numbers(self) -> Numbers | None:
        """The array that begins here, as text; None where it holds something else than numbers and arrays of them."""
        end = self.place
        while end < len(self.text):
            limit = min(len(self.text), end + SCANNED_CHARACTERS)
            match = NUMERIC.match(self.text, end, limit)
            end = match.end() if match else end
            if end < limit:
                break
        close = self.text.rfind("]", self.place, end)
        if close < 0:
            return None
        found = Numbers(self.text, self.place, close + 1)
        self.kept.append(found)
        self.number_characters += found.end - found.start
        self.place = found.end
        return found


def read_json(text: str) -> tuple[Any, list[Numbers]]:
    """The value of a JSON document, and all `Numbers` in it, still unread. Raises MalformedRequest."""
    reader = StrictJson(text)
    return reader.document(), reader.kept
