"""Columns of a table: which one holds the labels, which are features, and what no column of a table may hold.

Rule 1: a value that cannot be used is named by file, row and column. Rows count from 1, without the header.
Rule 2: features stand in the order in which the table has them, or, where they are known already, in theirs: columns
are found by name, and one that is missing or one too many is refused by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataError
from guard.features import Feature, names_of, near_to

LABEL_NAMES = ("label", "labels", "target", "class", "y")
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MAX_EXACT_STEPS = 2**24  # whole numbers up to it are all exact in float32
MIN_NUMBERED_ROWS = 10  # fewer numbers in a row may be chance
MAX_SHOWN_CHARACTERS = 40
LIST_PLACE = re.compile(r"\[\d+\]$")
MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-", "<na>"}
INDEXES = {"", "unnamed: 0", "__index_level_0__"}  # as tools call the number of a row, which they have written
COUNTERS = {*INDEXES, "id", "ids", "index", "row", "uuid"}


@dataclass(frozen=True)
class ColumnChoice:
    """What is known of a table's columns: which one holds the labels, which are left out, which are which feature."""

    label: str | None = None
    drop: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()  # of a bundle or of other data; none: those of the table
    words: bool = False  # columns of text are categories
    stated: tuple[tuple[str, tuple[str, ...]], ...] = ()  # words of columns of text, in the order of their codes

    def words_of(self, name: str) -> tuple[str, ...]:
        """Return the words that a column may hold, in the order of their codes; none where it is not known."""
        known = {feature.name: feature.words for feature in self.features}
        return known.get(name) or dict(self.stated).get(name, ())


@dataclass(frozen=True)
class Columns:
    """The columns of a table by their use."""

    label: str | None
    features: tuple[str, ...]
    notes: tuple[str, ...] = ()


def choose(names: Sequence[str], choice: ColumnChoice, source: str, *, labels: Sequence[str] = ()) -> Columns:
    """Say which columns are labels and features; `labels` are those that the file itself declares as labels.

    Raises:
        DataError: a name stands twice or is unknown, or several columns could be the labels.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{source}: column {twice[0]!r} stands there {names.count(twice[0])} times; rename one")
    drop = () if choice.features else choice.drop  # a table of known features may lack what others were made without
    for flag, name in (("--label-column", choice.label), *(("--drop-column", name) for name in drop)):
        if name is not None and name not in names:
            raise DataError(f"{source} has no column {name!r}, which {flag} names; it has {listed(names)}")
    if choice.label in choice.drop and choice.label is not None:
        raise DataError(f"{source}: column {choice.label!r} is both --label-column and --drop-column; wanted one")
    left = [name for name in names if name not in choice.drop]
    wanted = {base_of(name, left) for name in names_of(choice.features)}
    usual = [name for name in left if name.strip().lower() in LABEL_NAMES and name not in wanted]
    found = [choice.label] if choice.label is not None else usual or [name for name in left if name in labels]
    if len(found) > 1:
        raise DataError(f"{source}: the labels may be in {listed(found)}; say which with --label-column")
    label = found[0] if found else None
    features = tuple(name for name in left if name != label)
    if not features:
        raise DataError(f"{source} has no column beside {listed(found or names)}; wanted the model's inputs")
    dropped = (f"columns left out, as asked: {listed(choice.drop)}",) if choice.drop else ()
    if not wanted:
        return Columns(label, features, dropped)
    ordered = in_known_order(features, names_of(choice.features), label, source)
    moved = ("columns were put into the order of the features that the guard was trained on",)
    return Columns(label, ordered, (*dropped, *(moved if ordered != features else ())))


def in_known_order(columns: Sequence[str], features: Sequence[str], label: str | None, source: str) -> tuple[str, ...]:
    """Return columns in the order of known features. Raises DataError for one that is missing, or one too many."""
    wanted = list(dict.fromkeys(base_of(name, columns) for name in features))
    absent, further = [w for w in wanted if w not in columns], [c for c in columns if c not in wanted]
    if absent:
        beside = [*further, *([label] if label is not None else [])]
        meant = near_to(absent[0], beside)
        hint = f"; {meant}" if meant else f"; it has {listed(beside)} beside" if beside else ""
        as_label = " (it was taken for the labels: name theirs with --label-column)" if absent[0] == label else ""
        raise DataError(
            f"{source} has no column {absent[0]!r}{as_label}, a feature that the guard was trained on"
            + (f", nor {listed(absent[1:])}" if absent[1:] else "")
            + (hint if not as_label else "")
        )
    if further:
        raise DataError(
            f"{source} has column {further[0]!r}, which is no feature that the guard was trained on"
            + (f", nor is {listed(further[1:])}" if further[1:] else "")
            + f"; leave it out (--drop-column {further[0]!r}), or, where it holds the labels, --label-column"
        )
    return tuple(wanted)


def base_of(feature: str, columns: Sequence[str]) -> str:
    """Return the column that holds a feature: its own, or that of a list, as `pixels` of `pixels[3]`."""
    base = LIST_PLACE.sub("", feature)
    return base if feature not in columns and base in columns else feature


def listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if names[12:] else "")


def bad_value(place: str, column: str, value: object, wanted: str) -> DataError:
    """Return the error for a value that cannot be used; `place` is `FILE: row 3 (line 4)`."""
    try:
        shown = str(value)
    except UnicodeDecodeError:  # of an Arrow value
        shown = "bytes that are no UTF-8"
    shown = shown if len(shown) <= MAX_SHOWN_CHARACTERS else f"{shown[:MAX_SHOWN_CHARACTERS]}…"
    return DataError(f"{place}, column {column!r}: {shown!r}; wanted {wanted}")


def missing(place: str, column: str, text: str, wanted: str) -> DataError:
    """Return the error for an empty cell, or one that says that there is no value."""
    shown = f" ({text.strip()!r})" if text.strip() else ""
    return DataError(
        f"{place}, column {column!r}: the value is missing{shown}; wanted {wanted}: fill it in as the model was "
        "trained, or leave the row out"
    )


def wanted_text(column: str) -> str:
    return (
        f"a number; encode it as the model was trained, or --drop-column {column!r}, or --label-column where it is; "
        "--preset tabular and --features take words for categories"
    )


@dataclass
class FeatureWatch:
    """What is known of a table's features while its rows pass: ranges, whole numbers, what float32 rounds."""

    names: tuple[str, ...]
    source: str
    whole: NDArray[np.bool_]  # [feature] columns of whole numbers alone, so far
    low: NDArray[np.float64] = field(init=False)
    high: NDArray[np.float64] = field(init=False)
    rounded: dict[int, tuple[int, float]] = field(default_factory=dict)  # column -> its first row and value
    are_known: bool = False  # the features, of a bundle

    def __post_init__(self) -> None:
        self.low, self.high = np.full(len(self.names), np.inf), np.full(len(self.names), -np.inf)

    def see(self, values: NDArray[np.float64], first_row: int) -> None:
        """Take note of finite values [row, feature], the first of which stand in a row."""
        if not len(values):
            return
        self.low = np.minimum(self.low, values.min(axis=0))
        self.high = np.maximum(self.high, values.max(axis=0))
        self.whole = self.whole & (values == np.rint(values)).all(axis=0)
        for column in np.flatnonzero(self.whole & (np.maximum(-self.low, self.high) > MAX_EXACT_STEPS)).tolist():
            changed = np.flatnonzero(values[:, column] != values[:, column].astype(np.float32))
            if len(changed) and column not in self.rounded:
                self.rounded[column] = (first_row + int(changed[0]), float(values[changed[0], column]))

    def notes(self, values: NDArray[np.float32]) -> tuple[str, ...]:
        """Say what a reader should know of all values [row, feature]. Raises DataError for a column that numbers rows.

        A column of whole numbers that all differ numbers the rows where they have no gap, or where its name says so;
        a known feature never does, as ages from 20 to 69 that a file sweeps.
        """
        rows = len(values)
        if not self.are_known:
            self.check_features(values)
        return (*self.rounding(), *self.constants(rows))

    def check_features(self, values: NDArray[np.float32]) -> None:
        """Raise DataError for a column that numbers rows."""
        for column, name in enumerate(self.names):
            if name.strip().lower() in INDEXES and self.whole[column]:
                raise DataError(
                    f"{self.source}: column {name!r} is an index that a tool has written beside the table "
                    f"({self.low[column]:.0f} to {self.high[column]:.0f}); wanted features alone: --drop-column "
                    f"{name!r}, or give it a name where it is one"
                )
        rows = len(values)
        gaps = self.high - self.low + 1
        may_number = self.whole & (gaps >= rows) if rows >= MIN_NUMBERED_ROWS else np.zeros(len(self.names), np.bool_)
        for column in np.flatnonzero(may_number).tolist():
            name = self.names[column].strip().lower()
            named = name in COUNTERS or name.endswith(("_id", " id"))
            distinct = len(np.unique(values[:, column])) == rows or column in self.rounded
            if distinct and (named or gaps[column] == rows):
                raise DataError(
                    f"{self.source}: column {self.names[column]!r} numbers the rows ({self.low[column]:.0f} to "
                    f"{self.high[column]:.0f}, all different); wanted features alone: --drop-column "
                    f"{self.names[column]!r}, or write it with decimals where it is a feature"
                )

    def rounding(self) -> list[str]:
        if not self.rounded:
            return []
        column, (row, value) = next(iter(self.rounded.items()))
        return [
            f"{len(self.rounded)} columns hold whole numbers beyond {MAX_EXACT_STEPS} that float32 rounds, such as "
            f"{value:.0f} in row {row}, column {self.names[column]!r}"
        ]

    def constants(self, rows: int) -> list[str]:
        same = [name for name, low, high in zip(self.names, self.low, self.high, strict=True) if low == high]
        return [f"columns of one value alone: {listed(same)}"] if same and rows > 1 else []
