"""Features found from a table's values, and what a user states of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from guard.data_file import DataFile
from guard.errors import ConfigError, DataError
from guard.feature_values import check_values
from guard.features import BINARY, CATEGORICAL, INTEGER, NUMERIC, Feature
from guard.offline.data.find_features import find_features, found_step
from guard.offline.job.feature_file import Stated

DRAW = np.random.default_rng(0)
ITEMS = 200


def table(values: Any, words: tuple[str, ...] = (), name: str = "x") -> DataFile:
    column = np.asarray(values, dtype=np.float32)[:, None]
    return DataFile(column, None, "data.csv", features=(name,), words=(words,))


def found(values: Any, *stated: Stated, words: tuple[str, ...] = (), **more: Any) -> Feature:
    (feature,) = find_features(table(values, words), stated, **more)
    return feature


def kind_and_values(feature: Feature) -> tuple[Any, ...]:
    return feature.kind, feature.low, feature.high, feature.step, feature.categories


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(DRAW.integers(0, 2, ITEMS), (BINARY, 0, 1, None, (0, 1)), id="0 and 1"),
        pytest.param(DRAW.choice([1, 2], ITEMS), (INTEGER, 1, 2, 1, ()), id="1 and 2"),
        pytest.param(DRAW.choice([1, 3, 7], ITEMS), (INTEGER, 1, 7, 2, ()), id="few whole numbers"),
        pytest.param(np.r_[17, 90, DRAW.integers(17, 91, ITEMS)], (INTEGER, 17, 90, 1, ()), id="whole numbers"),
        pytest.param(np.r_[500, 510, 20 * DRAW.integers(25, 91, ITEMS)], (INTEGER, 500, 1800, 10, ()), id="tens"),
        pytest.param(
            [0.1, 12.34, 99.99, *DRAW.uniform(0.1, 99, 20).round(2)], (NUMERIC, 0.1, 99.99, 0.01, ()), id="cents"
        ),
        pytest.param([1, 2.5, 4] * 20, (NUMERIC, 1, 4, 1.5, ()), id="halves"),
        pytest.param(np.r_[0, 1, DRAW.random(ITEMS)], (NUMERIC, 0, 1, None, ()), id="no steps"),
        pytest.param([1, 2, 3, 4, 5, 6], (INTEGER, 1, 6, 1, ()), id="few rows"),
    ],
)
def test_kinds_and_steps_are_found(values: Any, expected: tuple[Any, ...]) -> None:
    feature = found(values)
    kind, low, high, step, categories = kind_and_values(feature)
    assert (kind, categories) == (expected[0], expected[4])
    assert [low, high, step] == pytest.approx(list(expected[1:4]))
    assert feature.open_high == (kind in (INTEGER, NUMERIC))


CHILDREN = np.r_[DRAW.integers(0, 8, ITEMS), 0, 7]


@pytest.mark.parametrize(
    ("stated", "words", "unseen", "refused"),
    [
        pytest.param((), (), 8, None, id="found"),
        pytest.param((Stated("x", immutable=True),), (), 8, None, id="found, immutable"),
        pytest.param((Stated("x", kind="integer"),), (), 8, None, id="an integer"),
        pytest.param((Stated("x", kind="categorical"),), (), 8, "one of its categories", id="categorical"),
        pytest.param((Stated("x", categories=tuple(map(float, range(8)))),), (), 8, "one of its", id="a list"),
        pytest.param((Stated("x", high=7),), (), 8, "up to 7", id="an end"),
        pytest.param((), tuple("abcdefgh"), 8, "one of its categories", id="words"),
        pytest.param((), (), 2.5, "a whole number", id="a fraction"),
    ],
)
def test_a_number_that_no_row_had_is_refused_only_where_it_was_ruled_out(
    stated: tuple[Stated, ...], words: tuple[str, ...], unseen: float, refused: str | None
) -> None:
    feature = found(CHILDREN, *stated, words=words)
    values = np.asarray([[3.0], [unseen]], np.float32)
    if refused is None:
        assert check_values(values, [feature], "new.csv") == [
            "values beyond what the guard was trained on: 'x' from 3 to 8, not 0 to 7"
        ]
        return
    with pytest.raises(DataError, match=rf"row 2, column 'x': '{unseen:g}'; wanted {refused}|wanted .*{refused}"):
        check_values(values, [feature], "new.csv")


def test_a_number_between_the_steps_that_were_found_is_none_of_another_kind() -> None:
    tens = found(np.r_[0, 10, 10 * DRAW.integers(0, 30, ITEMS)])
    assert (tens.kind, tens.step) == (INTEGER, 10)
    assert check_values(np.asarray([[25.0]], np.float32), [tens], "new.csv") == []
    stated = found(np.r_[0, 10, 10 * DRAW.integers(0, 30, ITEMS)], Stated("x", low=0, high=290, step=10))
    with pytest.raises(DataError, match="in steps of 10"):
        check_values(np.asarray([[25.0]], np.float32), [stated], "new.csv")


def test_words_are_categories_and_one_value_never_changes() -> None:
    words = found([0, 2, 1] * 4, words=("a", "b", "c"))
    assert (words.kind, words.categories, words.words) == (CATEGORICAL, (0, 1, 2), ("a", "b", "c"))
    assert found([0, 1, 1], words=("no", "yes")).kind == BINARY
    for alone in (found([4.0] * 9), found([0.0] * 9, words=("only",))):
        assert alone.immutable
        assert alone.low < alone.high


def test_what_is_stated_is_kept() -> None:
    values = np.r_[17, 90, DRAW.integers(17, 91, ITEMS)]
    feature = found(values, Stated("x", kind="numeric", immutable=True, low=0, high=100, step=0.5, cost=2))
    assert kind_and_values(feature) == (NUMERIC, 0, 100, 0.5, ())
    assert (feature.immutable, feature.cost, feature.open_low, feature.open_high) == (True, 2, False, False)
    half = found(values, Stated("x", low=0))
    assert (half.low, half.high, half.open_low, half.open_high) == (0, 90, False, True)
    ranged = found(values, value_range=(0.0, 120.0))
    assert (ranged.low, ranged.high, ranged.open_high) == (0, 120, False)
    assert found(DRAW.integers(0, 5, ITEMS), Stated("x", kind="integer")).kind == INTEGER
    assert found([1, 2] * 9, Stated("x", categories=(1.0, 2.0, 3.0))).categories == (1, 2, 3)


@pytest.mark.parametrize(
    ("values", "stated", "words"),
    [
        ([1, 2.5, 3], {"kind": "integer"}, ("row 2", "'x'", "'2.5'", "whole number")),
        ([1, 2, 9], {"low": 0, "high": 8}, ("row 3", "'9'", "up to 8")),
        ([1, 2, 0], {"low": 1}, ("row 3", "'0'", "from 1")),
        ([0, 0.3, 1], {"low": 0, "high": 1, "step": 0.25}, ("row 2", "'0.3'", "0.25")),
        ([1, 2, 4], {"categories": (1.0, 2.0, 3.0)}, ("row 3", "'4'", "1, 2, 3")),
        ([1, 2, 4], {"kind": "binary"}, ("3 different values", "at most 2")),
        ([1, 2, 4], {"categories": ("a", "b")}, ("holds numbers", "'a', 'b'")),
    ],
)
def test_values_that_contradict_what_is_stated(values: Any, stated: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        found(values, Stated("x", **stated))
    assert all(word in str(caught.value) for word in ("data.csv", *words)), caught.value


@pytest.mark.parametrize(
    ("said", "high", "step"),
    [
        ({"high": 101, "step": 5}, 98, 5),
        ({"low": 3, "high": 103, "step": 5}, 103, 5),
        ({"low": -2, "step": 5}, 98, 5),
        ({"high": 98, "step": 5}, 98, 5),
        ({"high": 98.5, "step": 5}, 98, 5),
        ({"high": 101}, 101, 1),
        ({"step": 5}, 98, 5),
    ],
    ids=str,
)
def test_a_stated_end_is_never_left_behind(said: dict[str, float], high: float, step: float) -> None:
    feature = found(np.r_[3, 98, 3 + 5 * DRAW.integers(0, 20, ITEMS)], Stated("x", **said))
    assert (feature.high, feature.step) == (high, step)
    assert feature.high <= said.get("high", np.inf)


def test_a_step_beyond_the_end_that_was_stated_is_refused() -> None:
    with pytest.raises(DataError, match=r"steps of 5, and goes from 3 to 4; wanted a step at least"):
        found([3.0] * 9, Stated("x", high=4, step=5))


def test_words_where_numbers_are_stated_and_names_of_no_column() -> None:
    with pytest.raises(DataError, match=r"row 1, column 'x': 'b'; wanted a number"):
        found([1, 0], Stated("x", kind="integer"), words=("a", "b"))
    with pytest.raises(ConfigError, match=r"'y', which is no feature in data\.csv; .*'x'"):
        found([1, 0], Stated("y"))


def test_one_hot_groups() -> None:
    group = Stated("colour", group=("red", "green"), cost=0.5)
    values = np.eye(2, dtype=np.float32)[[0, 1, 1]]
    data = DataFile(values, None, "data.csv", features=("red", "green"))
    assert [(f.kind, f.group, f.cost) for f in find_features(data, [group])] == [(BINARY, "colour", 0.5)] * 2
    values[1] = 1
    with pytest.raises(DataError, match=r"row 2 has 2 of the columns 'red', 'green' at 1"):
        find_features(data, [group])


def test_steps_are_the_largest_that_all_values_share() -> None:
    assert found_step(np.asarray([0.2, 0.5], np.float32), 0.2, 0.5) == pytest.approx(0.3)
    assert found_step(np.asarray([1e7, 1e7 + 1], np.float32), 1e7, 1e7 + 1) is None, "float32 keeps no such step"
    assert found_step(DRAW.normal(size=50).astype(np.float32), -3, 3) is None
