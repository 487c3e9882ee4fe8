"""Columns of words: codes in the order of the categories, the same from every kind of file, and bad cells by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.arrays import read_examples
from guard.columns import ColumnChoice
from guard.errors import DataError
from guard.features import CATEGORICAL, NUMERIC, Feature

FOUND = ColumnChoice(words=True)
TRADE = Feature("trade", CATEGORICAL, 0, 2, categories=(0, 1, 2), words=("smith", "nurse", "farmer"))
KNOWN = ColumnChoice(features=(Feature("hours", NUMERIC, 0, 60), TRADE))
ROWS: dict[str, list[Any]] = {
    "trade": ["nurse", "farmer", "smith", "nurse"],
    "hours": [1, 2, 3.5, 4],
    "y": [0, 1, 0, 1],
}


def csv(folder: Path, columns: dict[str, list[Any]]) -> Path:
    body = [["" if cell is None else str(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
    lines = [",".join(row) for row in (list(columns), *body)]
    (folder / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "data.csv"


def parquet(folder: Path, columns: dict[str, list[Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "data.parquet")
    return folder / "data.parquet"


def dictionary(folder: Path, columns: dict[str, list[Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(columns)
    coded = table.set_column(0, table.column_names[0], table.column(0).dictionary_encode())
    pyarrow.parquet.write_table(coded, folder / "coded.parquet")
    return folder / "coded.parquet"


every_file = pytest.mark.parametrize("write", [csv, parquet, dictionary])


@every_file
def test_words_that_are_found_are_sorted(write: Any, tmp_path: Path) -> None:
    found = read_examples(write(tmp_path, ROWS), choice=FOUND)
    assert found.features == ("trade", "hours")
    assert found.words == (("farmer", "nurse", "smith"), ())
    assert found.images.tolist() == [[1, 1], [0, 2], [2, 3.5], [1, 4]]


@every_file
def test_known_words_keep_their_order_and_columns_theirs(write: Any, tmp_path: Path) -> None:
    found = read_examples(write(tmp_path, ROWS), choice=KNOWN)
    assert found.features == ("hours", "trade")
    assert found.images.tolist() == [[1, 1], [2, 2], [3.5, 0], [4, 1]]
    assert any("order" in note for note in found.notes)


@every_file
@pytest.mark.parametrize(
    ("column", "cells", "words"),
    [
        ("trade", ["nurse", "nurze", "smith", "nurse"], ("row 2", "'trade'", "'nurze'", "did you mean 'nurse'?")),
        ("trade", ["nurse", "smith", None, "nurse"], ("row 3", "'trade'", "missing")),
        ("hours", ["1", "2", "three", "4"], ("'hours'", "a number")),
    ],
)
def test_a_bad_cell_is_named(write: Any, column: str, cells: list[Any], words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path, {**ROWS, column: cells}), choice=KNOWN)
    assert all(word in str(caught.value) for word in words), caught.value


@every_file
def test_a_column_is_missing_or_one_too_many(write: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'trade', a feature .*; did you mean 'trad'\?"):
        read_examples(write(tmp_path, {"trad": ROWS["trade"], "hours": ROWS["hours"]}), choice=KNOWN)
    with pytest.raises(DataError, match=r"column 'note', which is no feature .*--drop-column 'note'"):
        read_examples(write(tmp_path, {**ROWS, "note": [1, 2, 3, 4]}), choice=KNOWN)
    dropped = ColumnChoice(drop=("note",), features=KNOWN.features)
    assert len(read_examples(write(tmp_path, {**ROWS, "note": [1, 2, 3, 4]}), choice=dropped)) == 4


def test_numbers_among_words_are_a_mistake_of_either(tmp_path: Path) -> None:
    few, many = ["abc", *map(str, range(9))], [*("ab" * 5), "7"]
    for cells, row in ((few, 1), (many, 11)):
        columns = {"x": cells, "z": [0.5] * len(cells)}
        with pytest.raises(DataError, match=rf"row {row} .*column 'x': '{cells[row - 1]}'; .*--features"):
            read_examples(csv(tmp_path, columns), choice=FOUND)


def test_codes_that_are_kept_as_text_are_categories_in_their_order(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    codes = [str(row % 12) for row in range(60)]
    parquet.write_table(pa.table({"zone": codes, "label": [0, 1] * 30}), tmp_path / "a.parquet")
    found = read_examples(tmp_path / "a.parquet", choice=ColumnChoice(words=True))
    assert found.words == (tuple(str(code) for code in range(12)),)
    assert found.images[:, 0].tolist() == [row % 12 for row in range(60)]


def test_texts_that_all_differ_are_no_categories(tmp_path: Path) -> None:
    columns = {"name": [f"n{row}" for row in range(60)], "z": np.linspace(0, 1, 60).tolist()}
    with pytest.raises(DataError, match=r"'name' holds 60 different texts in 60 rows.*--drop-column 'name'"):
        read_examples(csv(tmp_path, columns), choice=FOUND)


def test_a_word_that_means_missing_is_a_category_once_it_is_stated(tmp_path: Path) -> None:
    columns = {"garage": ["none", "big", "none"], "z": [1, 2, 3]}
    with pytest.raises(DataError, match=r"row 1 .*missing \('none'\)"):
        read_examples(csv(tmp_path, columns), choice=ColumnChoice(words=True))
    stated = ColumnChoice(words=True, stated=(("garage", ("big", "none")),))
    assert read_examples(csv(tmp_path, columns), choice=stated).images[:, 0].tolist() == [1, 0, 1]


def test_a_column_of_numbers_is_no_column_of_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'trade': .*one of the categories"):
        read_examples(parquet(tmp_path, {**ROWS, "trade": [0, 1, 2, 0]}), choice=KNOWN)
