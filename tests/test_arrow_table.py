"""Parquet tables and saved data sets: vectors, arrays and pictures come out as they went in; bad values are named."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pa = pytest.importorskip("pyarrow", reason="needs the extra [tables]")

from pyarrow import parquet  # noqa: E402

from guard.arrays import read_examples  # noqa: E402
from guard.columns import ColumnChoice  # noqa: E402
from guard.errors import DataError  # noqa: E402
from guard.features import Feature  # noqa: E402
from tests.arrow_fixtures import class_label, described, picture_column, save_to_disk  # noqa: E402

PICTURES = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2, 0]


def written(folder: Path, table: Any, kind: str = "parquet") -> Path:
    if kind == "saved":
        return save_to_disk(folder / "saved", table, parts=2)
    parquet.write_table(table, folder / "data.parquet", row_group_size=3)
    return folder / "data.parquet"


def table_of(**columns: Any) -> Any:
    return pa.table(columns)


def refused(path: Path, *words: str, choice: ColumnChoice | None = None) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(path, choice=choice or ColumnChoice())
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_numbers_of_all_types_are_features_in_their_order(tmp_path: Path, kind: str) -> None:
    table = table_of(
        whole=pa.array([1, 5, -3], pa.int8()),
        unsigned=pa.array([2**24, 1, 0], pa.uint64()),
        half=pa.array(np.asarray([0.5, 2, 4], np.float16)),
        double=[0.25, 1e-3, 7.0],
        label=pa.array([2, 0, 1], pa.int32()),
        yes=[True, False, True],
        money=pa.array([Decimal("1.50"), Decimal("-2.25"), Decimal("0.00")], pa.decimal128(6, 2)),
        coded=pa.array([3, 3, 4]).dictionary_encode(),
        pair=pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2)),
        free=pa.array([[1.5], [2.5], [3.5]]),
    )
    found = read_examples(written(tmp_path, table, kind))
    assert found.images.dtype == np.float32
    assert found.features == (
        "whole",
        "unsigned",
        "half",
        "double",
        "yes",
        "money",
        "coded",
        "pair[0]",
        "pair[1]",
        "free[0]",
    )
    assert found.images[:2].tolist() == [
        [1, 2**24, 0.5, 0.25, 1, 1.5, 3, 1, 2, 1.5],
        [5, 1, 2, np.float32(1e-3), 0, -2.25, 3, 3, 4, 2.5],
    ]
    assert found.labelled().tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_more_rows_than_are_read_at_a_time(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    table = table_of(a=values[:, 0], b=values[:, 1], target=[f"c{place % 3}" for place in range(1000)])
    found = read_examples(written(tmp_path, table, kind))
    assert np.array_equal(found.images, values)
    assert found.labelled().tolist() == [place % 3 for place in range(1000)]


@pytest.mark.parametrize("coded", [False, True])
def test_labels_that_are_names_are_sorted_and_kept(tmp_path: Path, *, coded: bool) -> None:
    names = pa.array(["cat", "ant", "bee", "cat"])
    file = written(tmp_path, table_of(a=[1.5, 2, 3, 4], **{"class": names.dictionary_encode() if coded else names}))
    found = read_examples(file)
    assert (found.classes, found.labelled().tolist()) == (("ant", "bee", "cat"), [2, 0, 1, 2])
    assert read_examples(file, classes=("cat", "bee", "ant")).labelled().tolist() == [0, 2, 1, 0]
    with pytest.raises(DataError, match=r"row 3, column 'class': 'bee'; wanted one of .*'cat', 'ant'"):
        read_examples(file, classes=("cat", "ant"))


@pytest.mark.parametrize("labels", [[0.0, 2, 1, 0], ["0.0", "2.0", "1.0", "0.0"], ["0", "2 ", "1", "0"]])
def test_whole_labels_of_other_types_are_numbers(tmp_path: Path, labels: list[Any]) -> None:
    found = read_examples(written(tmp_path, table_of(a=[1.5, 2, 3, 4], label=labels)))
    assert found.labelled().tolist() == [0, 2, 1, 0]
    logical = read_examples(written(tmp_path, table_of(a=[1.5, 2], label=[True, False])))
    assert logical.labelled().tolist() == [1, 0]


def test_words_that_a_table_declares_to_be_in_order_keep_it(tmp_path: Path) -> None:
    sizes = pa.DictionaryArray.from_arrays(pa.array([2, 0, 2, 0]), ["small", "medium", "large"], ordered=True)
    labelled = read_examples(written(tmp_path, table_of(a=[1.5, 2, 3, 4], label=sizes)))
    assert (labelled.classes, labelled.labelled().tolist()) == (("small", "medium", "large"), [2, 0, 2, 0])
    grades = pa.DictionaryArray.from_arrays(pa.array([2, 0, 1, 0]), ["1", "2", "3"], ordered=True)
    numbered = read_examples(written(tmp_path, table_of(a=[1.5, 2, 3, 4], label=grades)))
    assert (numbered.classes, numbered.labelled().tolist()) == ((), [3, 1, 2, 1])
    table = table_of(size=sizes, label=LABELS[:4])
    found = read_examples(written(tmp_path, table), choice=ColumnChoice(words=True))
    assert (found.words, found.images[:, 0].tolist()) == ((("small", "medium", "large"),), [2, 0, 2, 0])


@pytest.mark.parametrize("kind", ["csv", "parquet", "saved"])
@pytest.mark.parametrize(
    ("label", "known", "expected"),
    [
        ("none", (), ("for", "none")),
        ("NA", (), ("NA", "for")),
        ("-", (), ("-", "for")),
        ("?", (), ("?", "for")),
        ("none", ("none", "for"), ("none", "for")),
        ("nan", ("for", "nan"), ("for", "nan")),
        ("None", ("for", "None"), ("for", "None")),
        ("nan", (), None),
        ("NaN", (), None),
        ("None", (), None),
        ("<NA>", (), None),
        ("", (), None),
        ("none", ("for", "against"), None),
    ],
)
def test_what_tools_write_for_a_missing_label_is_a_class_only_where_one_is_called_so(
    tmp_path: Path, kind: str, label: str, known: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    if kind == "csv":
        file = tmp_path / "data.csv"
        file.write_text(f"a,label\n1.5,for\n2.5,{label}\n")
    else:
        file = written(tmp_path, table_of(a=[1.5, 2.5], label=["for", label]), kind)
    if expected is None:
        with pytest.raises(DataError, match=r"row 2.*'label'.*(missing|classes known)"):
            read_examples(file, classes=known)
        return
    found = read_examples(file, classes=known)
    assert found.classes == expected
    assert found.labelled().tolist() == [expected.index("for"), expected.index(label)]
    assert any(f"as if their label were missing: {label!r}" in note for note in found.notes)


def test_a_missing_label_may_be_a_class_that_the_table_declares(tmp_path: Path) -> None:
    stances = pa.DictionaryArray.from_arrays(pa.array([1, 0]), ["nan", "for"], ordered=True)
    found = read_examples(written(tmp_path, table_of(a=[1.5, 2], label=stances)))
    assert (found.classes, found.labelled().tolist()) == (("nan", "for"), [1, 0])


SIZES = ["small", "medium", "large"]


def sized(rows: int, words: list[str] | None = None) -> tuple[Any, list[int]]:
    """A table of sizes in order, as features and labels; the middle one is seen late, the first one second."""
    codes = np.random.default_rng(0).integers(0, 3, rows)
    codes[:270] = np.where(codes[:270] == 1, 2, codes[:270])
    codes[0] = 2
    sizes = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), words or SIZES, ordered=True)
    return table_of(size=sizes, label=sizes), codes.tolist()


@pytest.mark.parametrize("rows", [50, 300, 600])
def test_declared_order_is_one_however_the_table_was_written(tmp_path: Path, rows: int) -> None:
    table, codes = sized(rows)
    (tmp_path / "parts").mkdir()
    parquet.write_table(table, tmp_path / "small.parquet", row_group_size=100)
    parquet.write_table(table, tmp_path / "large.parquet")
    parquet.write_table(table.slice(0, 20), tmp_path / "parts" / "train-00000-of-00002.parquet")
    parquet.write_table(table.slice(20), tmp_path / "parts" / "train-00001-of-00002.parquet")
    saved = save_to_disk(tmp_path / "saved", table, parts=2)
    for path in (tmp_path / "small.parquet", tmp_path / "large.parquet", tmp_path / "parts", saved):
        found = read_examples(path, choice=ColumnChoice(words=True))
        assert (found.classes, found.words) == (tuple(SIZES), (tuple(SIZES),))
        assert (found.images[:][:, 0].tolist(), found.labelled().tolist()) == (codes, codes)


@pytest.mark.parametrize("rows", [50, 300, 600])
def test_declared_order_that_is_not_in_the_file_is_refused_and_may_be_stated(tmp_path: Path, rows: int) -> None:
    table, codes = sized(rows)
    plain = tmp_path / "plain.parquet"
    parquet.write_table(table, plain, row_group_size=100, use_dictionary=False)
    refused(plain, "'label' is declared to be in order", "use_dictionary=['label']", "class numbers")
    words = ColumnChoice("label", words=True)
    parquet.write_table(table, plain, row_group_size=100, use_dictionary=["label"])
    refused(plain, "'size' is declared to be in order", "use_dictionary=['size']", "--features", choice=words)
    parquet.write_table(table, plain, row_group_size=100, use_dictionary=False)
    stated = ColumnChoice("label", words=True, stated=(("size", tuple(SIZES)),))
    found = read_examples(plain, choice=stated, classes=tuple(SIZES))
    assert (found.images[:][:, 0].tolist(), found.labelled().tolist()) == (codes, codes)


def test_parts_may_declare_fewer_words_and_no_other_order(tmp_path: Path) -> None:
    def part(number: int, words: list[str]) -> None:
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1]), words, ordered=True)
        file = tmp_path / f"train-{number:05}-of-00002.parquet"
        parquet.write_table(table_of(a=[1.5, 2], label=column), file)

    part(0, ["small", "large"])
    part(1, SIZES)
    found = read_examples(tmp_path)
    assert (found.classes, found.labelled().tolist()) == (tuple(SIZES), [0, 2, 0, 1])
    part(0, ["large", "small"])
    refused(tmp_path, "'label'", "its parts have different ones", "large, small", "small, medium, large")


def test_words_that_are_declared_with_spaces_around_are_the_words(tmp_path: Path) -> None:
    table, codes = sized(50, [" small", "medium ", "large"])
    found = read_examples(written(tmp_path, table), choice=ColumnChoice(words=True))
    assert (found.classes, found.words) == (tuple(SIZES), (tuple(SIZES),))
    assert (found.images[:][:, 0].tolist(), found.labelled().tolist()) == (codes, codes)


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_pictures_are_decoded(tmp_path: Path, kind: str) -> None:
    table = table_of(image=picture_column(list(PICTURES)), label=LABELS, id=list(range(7)))
    found = read_examples(written(tmp_path, table, kind))
    assert np.array_equal(found.images, PICTURES)
    assert found.images.dtype == np.uint8
    assert (found.layout, found.labelled().tolist()) == ("NHWC", LABELS)
    assert "columns left out: 'id'" in found.notes


def test_bare_bytes_are_pictures_and_grey_ones_become_colour(tmp_path: Path) -> None:
    grey = PICTURES[0, :, :, 0]
    column = picture_column([grey, *PICTURES[1:]]).field("bytes")
    found = read_examples(written(tmp_path, table_of(pixels=column, label=LABELS)))
    assert np.array_equal(found.images[0], np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(found.images[1:], PICTURES[1:])


@pytest.mark.parametrize("kind", ["parquet", "saved"])
@pytest.mark.parametrize(
    "array",
    [
        pytest.param(PICTURES, id="uint8, three axes"),
        pytest.param(PICTURES[..., 0], id="uint8, two axes"),
        pytest.param((PICTURES / 255).astype(np.float32), id="float32"),
    ],
)
def test_nested_lists_are_arrays(tmp_path: Path, kind: str, array: NDArray[Any]) -> None:
    inner = pa.from_numpy_dtype(array.dtype)
    for _ in array.shape[1:]:
        inner = pa.list_(inner)
    table = table_of(x=pa.array(array.tolist(), inner), label=LABELS)
    found = read_examples(written(tmp_path, table, kind))
    assert found.images.dtype == array.dtype
    assert np.array_equal(found.images, array), "three axes are grey images or series, as the model's input decides"


def test_arrays_of_eight_bytes_are_refused_as_elsewhere(tmp_path: Path) -> None:
    refused(written(tmp_path, table_of(x=pa.array(PICTURES.tolist()), label=LABELS)), "int64", "uint8 or float32")


GOOD: dict[str, Any] = {"a": [1.0, 2, 3, 4], "b": [5.0, 6, 7, 8], "label": [0, 1, 0, 1]}


@pytest.mark.parametrize("kind", ["parquet", "saved"])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"b": [5.0, 6, 7, None]}, ("row 4", "'b'", "missing (null)", "a number")),
        ({"b": [5.0, 6, 7, float("nan")]}, ("row 4", "'b'", "'nan'", "finite")),
        ({"b": [5.0, 6, 7, -float("inf")]}, ("row 4", "'b'", "'-inf'", "finite")),
        ({"b": [5.0, 6, 7, 1e39]}, ("row 4", "'b'", "1e+39", "float32")),
        ({"b": ["red"] * 4}, ("row 1", "'b'", "'red'", "--drop-column 'b'", "--label-column")),
        ({"b": [datetime.date(2020, 1, 2)] * 4}, ("row 1", "'b'", "2020-01-02", "a number")),
        ({"b": pa.nulls(4)}, ("row 1", "'b'", "missing (null)")),
        ({"b": [[1.0, 2], [1, 2], [1, 2], [1]]}, ("row 4", "'b'", "a list of 1", "2, as in the first row")),
        ({"b": [[1.0, 2], [1, 2], [1, 2], None]}, ("row 4", "'b'", "missing (null)", "a list of numbers")),
        ({"b": [[1.0, 2], [1, 2], [1, 2], [1, None]]}, ("row 4", "'b'", "missing (null)", "a number")),
        ({"b": [[[1.0], [2]], [[1], [2]], [[1], [2]], [[1], [2, 3]]]}, ("row 4", "'b'", "a list of 2", "1, as in")),
        ({"b": [[[1.0], [2]]] * 3 + [[[1.0], [float("nan")]]]}, ("row 4", "'b'", "NaN")),
        ({"label": [0, 1, 0, None]}, ("row 4", "'label'", "missing (null)", "a label")),
        ({"label": ["ant", "bee", "ant", None]}, ("row 4", "'label'", "missing (null)", "a label")),
        ({"label": [0, 1, 0, -1]}, ("row 4", "'label'", "label -1", "no label")),
        ({"label": [0.0, 1, 0.5, 1]}, ("row 3", "'label'", "'0.5'", "whole class numbers or names")),
        ({"label": ["ant", "bee", " ", "ant"]}, ("row 3", "'label'", "missing", "a label")),
        ({"label": ["ant", "bee", "3", "ant"]}, ("row 1", "'label'", "'ant'", "class number")),
        ({"y": [1, 2, 3, 4]}, ("'label', 'y'", "--label-column")),
    ],
)
def test_a_bad_value_is_refused_by_row_and_column(
    tmp_path: Path, kind: str, bad: dict[str, Any], words: tuple[str, ...]
) -> None:
    file = written(tmp_path, pa.table(GOOD | bad), kind)
    refused(file, file.name, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[5][1][2].append(0), ("row 6", "a list of 4", "3, as in the first row")),
        (lambda rows: rows[5][1].__setitem__(2, None), ("row 6", "missing (null)", "a list of numbers")),
        (lambda rows: rows[5][1][2].__setitem__(0, None), ("row 6", "missing (null)", "a number")),
    ],
)
def test_a_bad_place_deep_in_an_array_is_refused_by_its_row(
    tmp_path: Path, change: Callable[[Any], None], words: tuple[str, ...]
) -> None:
    rows = PICTURES.tolist()
    change(rows)
    refused(written(tmp_path, table_of(x=rows, label=LABELS), "saved"), "'x'", *words)


def test_a_row_without_its_picture_is_named(tmp_path: Path) -> None:
    table = table_of(image=picture_column([*PICTURES[:6], None]), label=LABELS)
    refused(written(tmp_path, table), "row 7", "'image'", "only the path '6.png'", "embed")
    damaged = pa.array([b"no picture"] * 7)
    refused(written(tmp_path, table_of(image=damaged, label=LABELS)), "row 1, column 'image'", "as a picture")
    sizes = picture_column([*PICTURES[:6], PICTURES[6, :3]])
    refused(written(tmp_path, table_of(image=sizes, label=LABELS)), "2 different sizes", "row 7", "5 x 3")
    two = picture_column(list(PICTURES))
    refused(written(tmp_path, table_of(image=two, mask=two, label=LABELS)), "'image', 'mask'", "--drop-column")


def test_names_that_the_table_declares_keep_their_order(tmp_path: Path) -> None:
    features = {"label": class_label("cat", "ant", "bee"), "a": {"dtype": "float32", "_type": "Value"}}
    table = table_of(label=[0, 2, 0], a=[1.5, 2, 3])
    saved = save_to_disk(tmp_path / "saved", table, features)
    exported = written(tmp_path, described(table, features))
    for path in (saved, exported):
        found = read_examples(path)
        assert (found.classes, found.labelled().tolist()) == (("cat", "ant", "bee"), [0, 2, 0])
        assert read_examples(path, classes=("ant", "bee", "cat")).labelled().tolist() == [2, 1, 2]
        with pytest.raises(DataError, match=r"class 'bee' is not known"):
            read_examples(path, classes=("ant", "cat"))
    parquet.write_table(described(table_of(label=[0, 3], a=[1.5, 2]), features), tmp_path / "data.parquet")
    refused(exported, "row 2", "label 3", "0 to 2")


def test_a_column_that_declares_classes_holds_the_labels_whatever_its_name(tmp_path: Path) -> None:
    one = {"fine": class_label("a", "b")}
    table = table_of(fine=[0, 1], coarse=[1, 0], x=[1.5, 2])
    assert read_examples(save_to_disk(tmp_path / "one", table, one)).labelled().tolist() == [0, 1]
    two = save_to_disk(tmp_path / "two", table, one | {"coarse": class_label("c", "d")})
    refused(two, "'fine', 'coarse'", "--label-column")
    chosen = read_examples(two, choice=ColumnChoice("coarse", ("fine",)))
    assert (chosen.classes, chosen.labelled().tolist()) == (("c", "d"), [1, 0])


def test_names_may_have_dots_and_numbers_may_not_be_names(tmp_path: Path) -> None:
    file = written(tmp_path, table_of(**{"leaf.width": [1.5, 2], "leaf": [3.5, 4], "leaf.kind": [1, 2]}))
    found = read_examples(file, choice=ColumnChoice("leaf.kind"))
    assert (found.features, found.images.tolist()) == (("leaf.width", "leaf"), [[1.5, 3.5], [2, 4]])
    with pytest.raises(DataError, match=r"'leaf\.kind' holds numbers.* 1 may be class 1, or the class called '1'"):
        read_examples(file, choice=ColumnChoice("leaf.kind"), classes=("1", "2"))


def test_a_column_that_numbers_the_rows_is_no_feature(tmp_path: Path) -> None:
    file = written(tmp_path, table_of(a=list(range(12)), b=[float(row) for row in range(12)]))
    refused(file, "column 'a' numbers the rows", "--drop-column 'a'")
    assert read_examples(file, choice=ColumnChoice(drop=("a",))).features == ("b",)
    known = tuple(Feature(name, "integer", 0, 100, step=1) for name in "ab")
    assert read_examples(file, choice=ColumnChoice(features=known)).images[:][:, 0].tolist() == list(range(12))
