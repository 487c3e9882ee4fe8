"""Tables as text: a header, then a row an item, separated by commas, semicolons or tabs.

Rule 1: UTF-8, with or without a mark at its beginning; numbers with a decimal point; the header is the first line.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from guard.array_room import PART_BYTES, new_array
from guard.category_column import NUMBER, CategoryColumn
from guard.class_names import NamedLabels, of_codes
from guard.columns import (
    MAX_FLOAT32,
    MISSING,
    ColumnChoice,
    Columns,
    FeatureWatch,
    bad_value,
    choose,
    missing,
    wanted_text,
)
from guard.data_file import DataFile
from guard.errors import DataError

TEXT_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
SEPARATORS = ",;\t"
BLOCK_ROWS = 512  # parsed at a time
INFINITIES = ("inf", "infinity")
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+\s*", re.ASCII)


@dataclass(frozen=True)
class TextRow:
    """A row's cells, and where it stands."""

    number: int  # from 1, without the header
    line: int  # of the file, from 1
    cells: list[str]


def read_csv(file: Path, choice: ColumnChoice, known: Sequence[str] = ()) -> DataFile:
    """Read a table's features [item, feature] and labels; `known` are the class names that a bundle has already.

    Raises:
        DataError: the file is damaged, or a value cannot be used; its row, line and column are named.
    """
    room = line_ends(file)
    with opened(file) as stream:
        separator, names = read_header(stream, file)
        columns = choose(names, choice, str(file))
        values = new_array((room, len(columns.features)), np.float32, str(file))
        labels, table, items = LabelColumn(names, columns.label, str(file)), None, 0
        for block in blocks(rows(stream, separator, names, file)):
            if table is None:
                table = FeatureColumns.of(names, columns, choice, block, file)
            values[items : items + len(block)] = table.numbers(block)
            items += len(block)
            labels.add(block)
    if table is None:
        raise DataError(f"{file} has a header and no row; wanted a row an item")
    words, notes = table.finish(values[:items])
    found = labels.numbered(known)
    return DataFile(
        values[:items],
        found.numbers if found else None,
        str(file),
        classes=found.names if found else (),
        class_noun="names of classes",
        features=columns.features,
        words=words,
        notes=(*columns.notes, *notes, *(found.notes if found else ())),
        labels_wanted="a column `label`, `labels`, `target`, `class` or `y`, or --label-column NAME,",
    )


@dataclass(frozen=True)
class FeatureColumns:
    """The columns of a text table that are features: of numbers, or of words that are categories."""

    file: Path
    names: tuple[str, ...]
    places: tuple[int, ...]  # of the features among a row's cells
    of_words: dict[int, CategoryColumn]  # by the feature's place among the features
    watch: FeatureWatch  # of the columns of numbers

    @staticmethod
    def of(
        names: Sequence[str], columns: Columns, choice: ColumnChoice, block: Sequence[TextRow], file: Path
    ) -> FeatureColumns:
        """Tell columns of words from columns of numbers by what is known, or by their first cell."""
        places = [names.index(name) for name in columns.features]
        found = {}
        for at, (name, place) in enumerate(zip(columns.features, places, strict=True)):
            words = choice.words_of(name)
            if words or (choice.words and is_word(block[0].cells[place])):
                found[at] = CategoryColumn(name, words)
        numbers = [at for at in range(len(places)) if at not in found]
        whole = [not any("." in row.cells[places[at]] for row in block) for at in numbers]
        watched = tuple(columns.features[at] for at in numbers)
        known = bool(choice.features)
        watch = FeatureWatch(watched, str(file), np.asarray(whole, dtype=np.bool_), are_known=known)
        return FeatureColumns(file, columns.features, tuple(places), found, watch)

    @property
    def of_numbers(self) -> list[int]:
        """The places of the features that are numbers, among the features."""
        return [at for at in range(len(self.places)) if at not in self.of_words]

    def numbers(self, block: Sequence[TextRow]) -> NDArray[np.float64]:
        """Return a block's features [row, feature], words as the codes in which they were first seen."""
        found = np.zeros((len(block), len(self.places)))
        numbers = self.of_numbers
        if numbers:
            cells = [tuple(row.cells[self.places[at]] for at in numbers) for row in block]
            found[:, numbers] = block_numbers(block, cells, self.watch.names, self.file)
            self.watch.see(found[:, numbers], block[0].number)
        for at, column in self.of_words.items():
            texts = [row.cells[self.places[at]] for row in block]
            found[:, at] = column.codes(texts, lambda row: place_of(str(self.file), block[row]))
        return found

    def finish(self, values: NDArray[np.float32]) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
        """Give words their final codes in values [row, feature]; return each feature's words, and what is odd."""
        words: list[tuple[str, ...]] = [()] * len(self.places)
        for at, column in self.of_words.items():
            if column.name in column.words and has_numbers(self.names):
                raise headerless(str(self.file), column.name)
            final, words[at] = column.finish(str(self.file))
            values[:, at] = final[values[:, at].astype(np.int64)]
        notes = self.watch.notes(values[:, self.of_numbers]) if self.of_numbers else ()
        return tuple(words) if self.of_words else (), notes


def is_word(cell: str) -> bool:
    """Return whether a cell is text that stands for no number and for no missing value."""
    bare = cell.strip().lower()
    numeric = NUMBER.fullmatch(cell) or DECIMAL_COMMA.fullmatch(cell) or bare.lstrip("+-") in INFINITIES
    return not numeric and bare not in MISSING


class LabelColumn:
    """The labels of a table's rows as codes of the texts that were seen, with the place of each text's first row."""

    def __init__(self, names: Sequence[str], label: str | None, source: str) -> None:
        self.place = None if label is None else list(names).index(label)
        self.label, self.source, self.names = label, source, tuple(names)
        self.codes: list[NDArray[np.int64]] = []
        self.words: dict[str, int] = {}
        self.seen: list[str] = []

    def add(self, block: Sequence[TextRow]) -> None:
        """Keep the labels of further rows."""
        if self.place is None:
            return
        codes = []
        for row in block:
            word = row.cells[self.place].strip()
            if word not in self.words:
                self.words[word] = len(self.words)
                self.seen.append(place_of(self.source, row))
            codes.append(self.words[word])
        self.codes.append(np.asarray(codes, dtype=np.int64))

    def numbered(self, known: Sequence[str]) -> NamedLabels | None:
        if self.label is None:
            return None
        if self.label in self.words and has_numbers(self.names):
            raise headerless(self.source, self.label)
        return of_codes(np.concatenate(self.codes), list(self.words), known, self.seen, self.label)


def has_numbers(names: Sequence[str]) -> bool:
    """Tell whether a number stands among what are to be names of columns."""
    return any(NUMBER.fullmatch(name) for name in names)


def headerless(source: str, name: str) -> DataError:
    """Return the error for a table whose first line is a row, since a column is called as one of its values."""
    return DataError(
        f"{source}: line 1 seems to be a row: {name!r} stands below it too, in the same column; wanted a header with "
        "names of columns"
    )


def line_ends(file: Path) -> int:
    """Count a file's line ends of all kinds: no file has more rows. Raises DataError where it cannot be read."""
    found = 1
    try:
        with open_bytes(file) as stream:
            while block := stream.read(PART_BYTES):
                found += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    return found


def open_bytes(file: Path) -> Any:
    return gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb")


@contextmanager
def opened(file: Path) -> Iterator[TextIO]:
    """Open a text table. Raises DataError for what is no UTF-8, or no table."""
    try:
        with open_bytes(file) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is no UTF-8 ({error.reason}, byte {error.start} of a part); save it as UTF-8"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def read_header(stream: TextIO, file: Path) -> tuple[str, list[str]]:
    """Return the separator, which cuts the first line into the most names, and the names. Raises DataError."""
    line = stream.readline()
    if not line.strip():
        raise DataError(f"{file} has no header in its first line; wanted names of columns")
    cut = {separator: names for separator in SEPARATORS if (names := header_cells(line, separator))}
    most = max(map(len, cut.values()), default=0)
    best = [separator for separator, names in cut.items() if len(names) == most]
    if not best:
        raise DataError(f"{file} has quotes without an end in line 1; wanted a header with names of columns")
    if most > 1 and len(best) > 1:
        raise DataError(f"{file}: line 1 may be separated by {' or '.join(map(repr, best))}; wanted one of them")
    names = [name.strip() for name in cut[best[0]]]
    if all(NUMBER.fullmatch(name) for name in names):
        raise DataError(f"{file}: line 1 is numbers alone; wanted a header with the names of {len(names)} columns")
    while len(names) > 1 and not names[-1]:
        names.pop()  # a separator behind the last column
    return best[0], names


def header_cells(line: str, separator: str) -> list[str]:
    """Cut a line; nothing comes out where a separator does not go with its quotes."""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return []


def rows(stream: TextIO, separator: str, names: Sequence[str], file: Path) -> Iterator[TextRow]:
    """Yield the rows below the header; empty lines are none. Raises DataError for rows of another width."""
    reader = csv.reader(stream, delimiter=separator, strict=True)
    number, line = 0, 2
    try:
        for cells in reader:
            if cells:
                number += 1
                while len(cells) > len(names) and not cells[-1].strip():
                    cells.pop()
                row = TextRow(number, line, cells)
                if len(cells) != len(names):
                    raise DataError(
                        f"{place_of(str(file), row)} has {len(cells)} values; wanted {len(names)}, one a column of the "
                        f"header, separated by {separator!r}"
                    )
                yield row
            line = reader.line_num + 2
    except csv.Error as error:
        raise DataError(f"{file}: row {number + 1} (line {line}) is damaged: {error}") from error


def blocks(every: Iterator[TextRow]) -> Iterator[list[TextRow]]:
    block: list[TextRow] = []
    for row in every:
        block.append(row)
        if len(block) == BLOCK_ROWS:
            yield block
            block = []
    if block:
        yield block


def place_of(source: str, row: TextRow) -> str:
    return f"{source}: row {row.number} (line {row.line})"


def block_numbers(
    block: Sequence[TextRow], cells: Sequence[tuple[str, ...]], names: Sequence[str], file: Path
) -> NDArray[np.float64]:
    """Parse the cells of a block [row, feature]. Raises DataError for the first that is no number of float32."""
    try:
        numbers = np.array(cells, dtype=np.float64)
        sound = bool((np.abs(numbers) <= MAX_FLOAT32).all())  # NaN is not
        if sound and not any("_" in "".join(row) for row in cells):  # Python takes 1_000 for a number
            return numbers
    except ValueError:
        pass
    for row, texts in zip(block, cells, strict=True):
        for name, text in zip(names, texts, strict=True):
            check_number(text, place_of(str(file), row), name)
    return np.array(cells, dtype=np.float64)


def check_number(text: str, place: str, column: str) -> None:
    """Raise DataError where a cell is no number that float32 holds."""
    if text.strip().lower() in MISSING:
        raise missing(place, column, text, "a number")
    if DECIMAL_COMMA.fullmatch(text):
        raise bad_value(place, column, text, f"a decimal point, as {text.strip().replace(',', '.')}: no decimal comma")
    if not NUMBER.fullmatch(text) and text.strip().lower().lstrip("+-") not in INFINITIES:
        raise bad_value(place, column, text, wanted_text(column))
    if abs(float(text)) > MAX_FLOAT32:
        raise bad_value(place, column, text, "a finite number that float32 holds")
