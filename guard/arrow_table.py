"""Tables in Arrow's types: numbers and lists as vectors, nested lists as arrays, bytes of picture files as pictures.

Rule 1: the inputs are one column of pictures, or one of arrays with two axes and more, or all columns of numbers and
lists of numbers beside each other. What stands beside pictures or arrays is left out, and said.
Rule 2: the table is read batch by batch into one array, which may lie on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.array_room import new_array
from guard.arrow_labels import read_labels
from guard.arrow_order import declared_order, is_ordered
from guard.arrow_rows import RowGroups, arrays_in_rows, pictures_in_rows
from guard.arrow_values import (
    ARRAY,
    NUMBER,
    PICTURE,
    TEXT,
    VECTOR,
    check_present,
    kind_of,
    nested,
    numbers_of,
    picture_bytes,
    stored,
)
from guard.category_column import CategoryColumn
from guard.columns import MAX_FLOAT32, ColumnChoice, Columns, FeatureWatch, bad_value, choose, listed, wanted_text
from guard.data_file import DataFile, Reading, first_not_finite
from guard.errors import DataError
from guard.items_on_disk import Items
from guard.layout import LAST
from guard.picture_stack import PictureStack
from guard.pictures import decode_picture


@dataclass(frozen=True)
class ArrowTable:
    """A table that can be read batch by batch, as often as is needed."""

    source: str
    schema: Any  # pyarrow.Schema
    rows: int
    batches: Callable[[Sequence[str]], Iterator[Any]]  # of the named columns, as pyarrow.RecordBatch
    groups: RowGroups  # the same rows, each to be read alone
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of columns that declare them
    keeps_order: Callable[[str], bool] | None = None  # whether a column's dictionary lies in the files; None: each

    def order_of(self, name: str, remedy: str) -> tuple[str, ...]:
        """Return the words of a column in the order that it declares; none where it declares none. Raises DataError."""
        if not is_ordered(self.schema.field(name).type):
            return ()
        is_kept = self.keeps_order is None or self.keeps_order(name)
        return declared_order(self.batches, name, self.source, remedy, is_kept=is_kept)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a table in their file's form, and what was seen on the way."""

    values: Items  # [item, ...]
    notes: tuple[str, ...]
    layout: str | None = None
    features: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()  # of each feature; none where all are numbers


def read_table(
    table: ArrowTable,
    choice: ColumnChoice,
    known: Sequence[str] = (),
    progress: Reading | None = None,
    *,
    stream: bool = False,
) -> DataFile:
    """Read a table's inputs and labels; `known` are the class names that a bundle has already.

    `stream`: pictures and nested lists that do not fit into memory stay in their files.

    Raises:
        DataError: a column or a value cannot be used; its row and column are named.
    """
    columns = choose(table.schema.names, choice, table.source, labels=tuple(table.class_names))
    if table.rows == 0:
        raise DataError(f"{table.source} has columns and no row; wanted a row an item")
    labels = None
    if columns.label is not None:
        order = partial(table.order_of, columns.label, "as class numbers")
        batches = table.batches([columns.label])
        labels = read_labels(batches, table.class_names, columns.label, known, table.source, order)
    found = read_inputs(table, columns, choice, progress, stream=stream)
    return DataFile(
        found.values,
        labels.numbers if labels else None,
        table.source,
        found.layout,
        classes=labels.names if labels else (),
        class_noun="names of classes",
        features=found.features,
        words=found.words,
        notes=(*columns.notes, *found.notes, *(labels.notes if labels else ())),
        labels_wanted="a column `label`, `labels`, `target`, `class` or `y`, or --label-column NAME,",
    )


def read_inputs(
    table: ArrowTable, columns: Columns, choice: ColumnChoice, progress: Reading | None, *, stream: bool
) -> Inputs:
    """Read the columns that are no labels, by their kinds. Raises DataError."""
    kinds = {name: kind_of(table.schema.field(name).type) for name in columns.features}
    single = [name for name, kind in kinds.items() if kind in (PICTURE, ARRAY)]
    if len(single) > 1:
        raise DataError(f"{table.source}: the inputs may be in {listed(single)}; leave all but one out: --drop-column")
    if not single:
        return read_vectors(table, columns.features, kinds, choice)
    others = [name for name in columns.features if name not in single]
    notes = (f"columns left out: {listed(others)}",) if others else ()
    is_picture = kinds[single[0]] == PICTURE
    large = (pictures_in_rows if is_picture else arrays_in_rows)(table.groups, single[0]) if stream else None
    if large is not None:
        return Inputs(large, notes, LAST if is_picture else None)
    if is_picture:
        images, changes = read_pictures(table, single[0], progress)
        return Inputs(images, (*notes, *changes), LAST)
    return Inputs(read_arrays(table, single[0]), notes)


def read_pictures(table: ArrowTable, name: str, progress: Reading | None) -> tuple[NDArray[Any], list[str]]:
    """Decode a column of picture files. Raises DataError."""
    stack = PictureStack(table.rows, table.source)
    for batch in table.batches([name]):
        for content in picture_bytes(batch.column(0), table.source, name, stack.filled + 1):
            place = f"row {stack.filled + 1}, column {name!r}"
            stack.add(decode_picture(content, f"{table.source}: {place}"), place)
            if progress is not None:
                progress(stack.filled, table.rows)
    return stack.finish()


def read_arrays(table: ArrowTable, name: str) -> NDArray[Any]:
    """Read a column of nested lists, all of one shape [item, ...]. Raises DataError."""
    values: NDArray[Any] | None = None
    items = 0
    for batch in table.batches([name]):
        shape = None if values is None else values.shape[1:]
        part = nested(batch.column(0), table.source, name, items + 1, shape)
        if (bad := first_not_finite(part)) is not None:
            raise DataError(
                f"{table.source}: row {items + 1 + bad}, column {name!r} holds NaN or infinity; wanted none"
            )
        if values is None:
            values = new_array((table.rows, *part.shape[1:]), part.dtype, table.source)
        values[items : items + len(part)] = part
        items += len(part)
    if values is None:
        raise DataError(f"{table.source} holds no rows; wanted at least one")
    return values


def read_vectors(table: ArrowTable, names: Sequence[str], kinds: Mapping[str, str], choice: ColumnChoice) -> Inputs:
    """Read columns of numbers, of lists of numbers and of words side by side [item, feature]. Raises DataError."""
    values: NDArray[Any] | None = None
    watch: FeatureWatch | None = None
    widths: dict[str, int] = {}
    of_words = word_columns(table, names, kinds, choice)
    items = 0
    for batch in table.batches(names):
        blocks = [
            word_codes(batch.column(at), table.source, of_words[name], items + 1, widths)
            if name in of_words
            else block_of(batch.column(at), table.source, name, items + 1, widths, kinds)
            for at, name in enumerate(names)
        ]
        block = np.concatenate(blocks, axis=1)
        if values is None or watch is None:
            values = new_array((table.rows, block.shape[1]), np.float32, table.source)
            whole = whole_types(table, widths, kinds)
            watch = FeatureWatch(features_of(widths, kinds), table.source, whole, are_known=bool(choice.features))
        watch.see(block, items + 1)
        values[items : items + len(block)] = block
        items += len(block)
    if values is None or watch is None:
        raise DataError(f"{table.source} holds no rows; wanted at least one")
    notes = watch.notes(values)
    words: list[tuple[str, ...]] = [()] * len(watch.names)
    for name, column in of_words.items():
        at = watch.names.index(name)
        final, words[at] = column.finish(table.source)
        values[:, at] = final[values[:, at].astype(np.int64)]
    return Inputs(values, notes, features=watch.names, words=tuple(words) if of_words else ())


def word_columns(
    table: ArrowTable, names: Sequence[str], kinds: Mapping[str, str], choice: ColumnChoice
) -> dict[str, CategoryColumn]:
    """Return the columns of categories in words, each with the order that is known or declared. Raises DataError."""
    found = {}
    for name in names:
        known = choice.words_of(name)
        if not known and choice.words and kinds[name] == TEXT:
            found[name] = CategoryColumn(name, table.order_of(name, "state its categories in --features"))
        elif known:
            found[name] = CategoryColumn(name, known)
    return found


def word_codes(
    column: Any, source: str, category: CategoryColumn, row: int, widths: dict[str, int]
) -> NDArray[np.float64]:
    """Return a batch of one column of words as codes [row, 1], as they were first seen. Raises DataError."""
    if kind_of(column.type) != TEXT:
        check_present(column, source, category.name, row, "a category")
        wanted = f"text, one of the categories {listed(category.known)}"
        raise bad_value(f"{source}: row {row}", category.name, column[0], wanted)
    widths[category.name] = 1
    texts = stored(column).to_pylist()
    return category.codes(texts, lambda at: f"{source}: row {row + at}")[:, None].astype(np.float64)


def block_of(
    column: Any, source: str, name: str, row: int, widths: dict[str, int], kinds: Mapping[str, str]
) -> NDArray[np.float64]:
    """Return a batch of one column [row, feature], whose first row is `row`. Raises DataError."""
    if kinds[name] not in (NUMBER, VECTOR):
        check_present(column, source, name, row, "a number")
        raise bad_value(f"{source}: row {row}", name, column[0], wanted_text(name))
    if kinds[name] == VECTOR:
        shape = (widths[name],) if name in widths else None
        block = nested(column, source, name, row, shape).astype(np.float64)
    else:
        block = numbers_of(column, source, name, row)[:, None]
    widths[name] = block.shape[1]
    too_large = ~(np.abs(block) <= MAX_FLOAT32).all(axis=1)
    if too_large.any():
        item = int(np.argmax(too_large))
        value = block[item][~(np.abs(block[item]) <= MAX_FLOAT32)][0]
        raise bad_value(f"{source}: row {row + item}", name, value, "a finite number that float32 holds")
    return block


def features_of(widths: Mapping[str, int], kinds: Mapping[str, str]) -> tuple[str, ...]:
    """Name each feature: a column of single values as the column, a place in a list as `column[2]`."""
    names = [
        [name] if kinds[name] != VECTOR else [f"{name}[{place}]" for place in range(width)]
        for name, width in widths.items()
    ]
    return tuple(feature for few in names for feature in few)


def whole_types(table: ArrowTable, widths: Mapping[str, int], kinds: Mapping[str, str]) -> NDArray[np.bool_]:
    """Tell of each feature whether its column is of whole numbers by its type."""
    whole = [kinds[name] == NUMBER and "int" in str(table.schema.field(name).type) for name in widths]
    return np.repeat(whole, list(widths.values()))
