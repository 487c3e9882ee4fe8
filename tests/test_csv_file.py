"""Text tables: every way of writing one gives the same items, and a bad cell is named by row, line and column."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from guard.arrays import read_examples
from guard.columns import ColumnChoice
from guard.errors import DataError
from guard.features import Feature

TABLE = "width,height,label\n1.5,-2,0\n.25,3e2,2\n"
VALUES = [[1.5, -2.0], [0.25, 300.0]]


def csv(folder: Path, text: str, name: str = "data.csv") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(TABLE, id="commas"),
        pytest.param(TABLE.replace(",", ";"), id="semicolons"),
        pytest.param(TABLE.replace(",", "\t"), id="tabs"),
        pytest.param("\ufeff" + TABLE, id="mark of UTF-8"),
        pytest.param(TABLE.replace("\n", "\r\n"), id="Windows' line ends"),
        pytest.param(TABLE.replace("\n", "\r"), id="old Macs' line ends"),
        pytest.param(TABLE.replace("\n", "\n\n").rstrip(), id="empty lines, none at the end"),
        pytest.param('"width", height ,"label"\n"1.5",-2 ,"0"\n .25,"3e2",2\n', id="quoted, with blanks"),
    ],
)
def test_every_spelling_is_the_same_items(tmp_path: Path, text: str) -> None:
    found = read_examples(csv(tmp_path, text))
    assert found.images.dtype == np.float32
    assert found.images.tolist() == VALUES
    assert found.labelled().tolist() == [0, 2]
    assert found.features == ("width", "height")


def test_packed_tables_and_tab_files(tmp_path: Path) -> None:
    (tmp_path / "data.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    assert read_examples(tmp_path / "data.csv.gz").images.tolist() == VALUES
    assert read_examples(csv(tmp_path, TABLE.replace(",", "\t"), "data.tsv")).images.tolist() == VALUES
    (tmp_path / "data.csv.gz").write_bytes(gzip.compress(TABLE.encode())[:-9])
    with pytest.raises(DataError, match=r"data\.csv\.gz cannot be read"):
        read_examples(tmp_path / "data.csv.gz")


def test_more_rows_than_are_parsed_at_a_time(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(1300, 3)).astype(np.float32)
    rows = [",".join([*(repr(float(v)) for v in row), "ab"[place % 2]]) for place, row in enumerate(values)]
    found = read_examples(csv(tmp_path, "\n".join(["a,b,c,class", *rows])))
    assert np.array_equal(found.images, values)
    assert found.labelled().tolist() == [0, 1] * 650


def test_labels_that_are_names_are_sorted_and_kept(tmp_path: Path) -> None:
    file = csv(tmp_path, "y,a\ncat,1\nant,2\ncat,3\n")
    found = read_examples(file)
    assert (found.classes, found.labelled().tolist()) == (("ant", "cat"), [1, 0, 1])
    assert "classes by label: 0 ant, 1 cat" in found.notes
    assert read_examples(file, classes=("cat", "bee", "ant")).labelled().tolist() == [0, 2, 0]


def test_a_column_of_any_name_holds_the_labels_where_it_is_named(tmp_path: Path) -> None:
    file = csv(tmp_path, "kind,y,note,a\n1,5,x,1\n0,6,y,2\n")
    found = read_examples(file, choice=ColumnChoice("kind", ("note",)))
    assert found.labelled().tolist() == [1, 0]
    assert found.features == ("y", "a")
    assert "columns left out, as asked: 'note'" in found.notes


def test_whole_labels_that_are_written_as_decimals_are_numbers(tmp_path: Path) -> None:
    text = "\n".join(["a,label", *(f"{row}.5,{row}.0" for row in range(12))])
    found = read_examples(csv(tmp_path, text))
    assert (found.labelled().tolist(), found.classes) == (list(range(12)), ())


@pytest.mark.parametrize("choice", [ColumnChoice("setosa"), ColumnChoice(words=True)])
def test_a_first_row_is_no_header(tmp_path: Path, choice: ColumnChoice) -> None:
    file = csv(tmp_path, "5.1,3.5,setosa\n4.9,3.0,setosa\n7.0,3.2,versicolor\n")
    with pytest.raises(DataError, match="line 1 seems to be a row: 'setosa' stands below it too"):
        read_examples(file, choice=choice)


def test_a_column_may_be_called_as_one_of_its_values(tmp_path: Path) -> None:
    found = read_examples(csv(tmp_path, "a,y\n1.5,y\n2.5,n\n"))
    assert (found.classes, found.labelled().tolist()) == (("n", "y"), [1, 0])
    words = read_examples(csv(tmp_path, "male,label\nmale,0\nfemale,1\n"), choice=ColumnChoice(words=True))
    assert words.words == (("female", "male"),)


def test_a_separator_behind_every_row_makes_no_column(tmp_path: Path) -> None:
    assert read_examples(csv(tmp_path, "a,b,label,\n1,2,0,\n3,4,1,\n")).features == ("a", "b")


@pytest.mark.parametrize("place", [20, 40, 60, -6])
def test_a_damaged_gzip_is_an_error_of_ours(tmp_path: Path, place: int) -> None:
    packed = bytearray(gzip.compress(b"a,label\n" + b"".join(b"%d.5,%d\n" % (n * n, n % 2) for n in range(200))))
    packed[place] ^= 0xFF
    (tmp_path / "data.csv.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"data.csv.gz"):
        read_examples(tmp_path / "data.csv.gz")


def test_a_table_without_labels_can_be_read(tmp_path: Path) -> None:
    found = read_examples(csv(tmp_path, "a,b\n1,2\n"))
    assert found.labels is None
    with pytest.raises(DataError, match="--label-column"):
        found.labelled()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,label\n1,2,0\n3,,1\n", ("row 2 (line 3)", "'b'", "missing", "number")),
        ("a,b,label\n1,2,0\n\n3,NaN,1\n", ("row 2 (line 4)", "'b'", "missing ('NaN')")),
        ("a,b,label\n1,2,0\n3,red,1\n", ("row 2 (line 3)", "'b'", "'red'", "--drop-column 'b'", "--label-column")),
        ("a,b,label\n1,2,0\n3,1_000,1\n", ("row 2 (line 3)", "'b'", "'1_000'")),
        ("a,b,label\n1,2,0\n-inf,1,1\n", ("row 2 (line 3)", "'a'", "'-inf'", "finite")),
        ("a,b,label\n1,2,0\n1,1e39,1\n", ("row 2 (line 3)", "'b'", "'1e39'", "float32")),
        ("a;b;label\n1;2;0\n1,5;3;1\n", ("row 2 (line 3)", "'a'", "'1,5'", "as 1.5", "no decimal comma")),
        ("a,b,label\n1,2,0\n3,4,\n", ("row 2 (line 3)", "'label'", "missing", "a label")),
        ("a,b,label\n1,2,0\n3,4,ant\n", ("row 2 (line 3)", "'label'", "'ant'", "class number")),
        ("a,b,label\n1,2,0\n3,4,1.5\n", ("row 2 (line 3)", "'label'", "'1.5'", "class number")),
        ("a,b,label\n1,2,0.5\n3,4,1.5\n", ("row 1 (line 2)", "'label'", "'0.5'", "no numbers")),
        (",a,label\n0,1.5,0\n1,2.5,1\n0,1.5,1\n", ("column ''", "an index", "--drop-column ''")),
        ("a,label,\n1,2,\n3,4,5\n", ("row 2 (line 3)", "has 3 values", "wanted 2")),
        ("a,b,label\n1,2,0\n3,4\n", ("row 2 (line 3)", "has 2 values", "wanted 3", "','")),
        ('a,b,label\n"x\ny",2,0\n', ("row 1 (line 2)", "'a'")),
        ('a,b,label\n1,"2,0\n3,4,1\n', ("damaged",)),
        ("a,b,label\n", ("header and no row",)),
        ("", ("no header",)),
        ("1,2,0\n3,4,1\n", ("line 1 is numbers alone", "header", "3 columns")),
        ("a;b,c;d,e\n", ("line 1", "','", "';'")),
        ("a,b,a\n1,2,3\n", ("'a'", "2 times", "rename")),
        ("a,label,target\n1,2,3\n", ("'label', 'target'", "--label-column")),
        ("label\n1\n", ("no column beside 'label'",)),
    ],
)
def test_a_bad_table_is_refused_by_row_line_and_column(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(csv(tmp_path, text))
    assert all(word in str(caught.value) for word in ("data.csv", *words)), str(caught.value)


def test_a_second_quoted_line_is_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 \(line 4\), column 'a': the value is missing"):
        read_examples(csv(tmp_path, 'a,label\n1,"an\nt"\n,bee\n'))


def test_a_name_that_the_bundle_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 \(line 3\), column 'y': 'elk'; wanted one of .* 'ant', 'bee'"):
        read_examples(csv(tmp_path, "a,y\n1,ant\n2,elk\n"), classes=("ant", "bee"))


@pytest.mark.parametrize("flag", [ColumnChoice("none"), ColumnChoice(drop=("none",))])
def test_a_named_column_has_to_be_there(tmp_path: Path, flag: ColumnChoice) -> None:
    with pytest.raises(DataError, match=r"no column 'none', which --(label|drop)-column names; it has 'width'"):
        read_examples(csv(tmp_path, TABLE), choice=flag)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes("a,b\n1,\xfc\n".encode("latin-1"))
    with pytest.raises(DataError, match="no UTF-8"):
        read_examples(tmp_path / "data.csv")
    (tmp_path / "data.csv").write_bytes("a,b\n1,2\n".encode("utf-16"))
    with pytest.raises(DataError, match="no UTF-8"):
        read_examples(tmp_path / "data.csv")


ROWS = range(12)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("any", [7 + row for row in ROWS]),
        ("any", [(5 * row) % 12 for row in ROWS]),
        ("customer_id", [3 * row * row for row in ROWS]),
        ("id", [3_000_000_000 + row * row for row in ROWS]),
    ],
)
def test_a_column_that_numbers_the_rows_is_no_feature(tmp_path: Path, name: str, values: list[int]) -> None:
    text = "\n".join([f"{name},a", *(f"{value},1.5" for value in values)])
    with pytest.raises(DataError, match=rf"column '{name}' numbers the rows .*--drop-column '{name}'"):
        read_examples(csv(tmp_path, text))
    assert read_examples(csv(tmp_path, text), choice=ColumnChoice(drop=(name,))).features == ("a",)
    decimals = "\n".join([f"{name},a", *(f"{value}.0,1.5" for value in values)])
    assert read_examples(csv(tmp_path, decimals)).images.shape == (12, 2)


@pytest.mark.parametrize("name", ["age", "customer_id", "id", "Unnamed: 0"])
def test_a_known_feature_may_have_values_that_would_number_rows(tmp_path: Path, name: str) -> None:
    file = csv(tmp_path, "\n".join([f"{name},a", *(f"{20 + row},1.5" for row in ROWS)]))
    known = tuple(Feature(one, "integer", 0, 100, step=1) for one in (name, "a"))
    found = read_examples(file, choice=ColumnChoice(features=known))
    assert found.images[:, 0].tolist() == [20 + row for row in ROWS]
    with pytest.raises(DataError, match="--drop-column"):
        read_examples(file)


def test_whole_numbers_that_do_not_number_the_rows_are_features(tmp_path: Path) -> None:
    text = "\n".join(["price,id,a", *(f"{3 * row * row},{row % 4},{row}" for row in ROWS if row != 5)])
    found = read_examples(csv(tmp_path, text))
    assert found.features == ("price", "id", "a")


def test_a_rounded_number_is_named_by_its_row_far_down(tmp_path: Path) -> None:
    text = "\n".join(["a,Label", *["5,0"] * 700, "-16777217,1"])
    found = read_examples(csv(tmp_path, text))
    assert any("-16777217 in row 701, column 'a'" in note for note in found.notes)
    assert found.labelled().sum() == 1


def test_what_is_odd_but_can_be_read_is_said(tmp_path: Path) -> None:
    found = read_examples(csv(tmp_path, "a,b\n16777216,5\n16777217,5\n"))
    assert any("16777217 in row 2, column 'a'" in note for note in found.notes)
    assert "columns of one value alone: 'b'" in found.notes
